"""Servers on loopback: kvtool's own applications, and one that speaks S3."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import uvicorn
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIAEXAMPLE", "a-key-that-nobody-may-see"
URL = "s3://caches/some/where"


@contextmanager
def listen(app: Any, **options: Any) -> Iterator[str]:
    """Answers for an application, within this process, at the address that it gives; ``options`` are uvicorn's."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        scheme = "https" if server.config.is_ssl else "http"
        yield f"{scheme}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Where a server answers that speaks S3."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Objects:
    """The bucket as who fills it sees it."""

    def __init__(self, endpoint: str) -> None:
        self.s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.s3.create_bucket(Bucket="caches")

    def put(self, file: str, data: bytes, below: str = "some/where") -> None:
        self.s3.put_object(Bucket="caches", Key=f"{below}/{file}", Body=data)

    def copy(self, root: Path, below: str = "some/where") -> None:
        for path in root.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(root).as_posix(), path.read_bytes(), below)

    def remove(self, file: str) -> None:
        self.s3.delete_object(Bucket="caches", Key=f"some/where/{file}")

    def empty(self) -> None:
        for file in self.s3.list_objects_v2(Bucket="caches").get("Contents", []):
            self.s3.delete_object(Bucket="caches", Key=file["Key"])

    def clear(self) -> None:
        self.empty()
        self.s3.delete_bucket(Bucket="caches")


@pytest.fixture
def objects(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """An empty bucket, and an environment that leads there."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    objects = Objects(endpoint)
    yield objects
    objects.clear()
