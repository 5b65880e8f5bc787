"""Every backend passes the same suite: directories, servers, buckets and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvtool.model.model import Model
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Limits, Service
from kvtool.store.backends.directory import DirectoryBackend
from kvtool.store.backends.http import HttpBackend
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.backends.object_store import ObjectStoreBackend
from kvtool.testing.backends import BackendSuite, Show
from tests.loopback import URL, Objects, listen


class TestDirectory(BackendSuite):
    @pytest.fixture
    def show(self) -> Show:
        return lambda root: DirectoryBackend(f"file://{root}")


class TestHttp(BackendSuite):
    """Asks a kvtool server over a real socket."""

    @pytest.fixture
    def show(self, model: Model) -> Iterator[Show]:
        urls: dict[Path, str] = {}
        with ExitStack() as servers:

            def show(root: Path) -> HttpBackend:
                if root not in urls:
                    serving = Service.over(root, model, Limits(memory=1 << 28), loading=LoadOptions("raw"))
                    urls[root] = servers.enter_context(listen(create_app(serving)))
                return HttpBackend(urls[root])

            yield show


class TestObjectStore(BackendSuite):
    """Asks a server that speaks S3 over a real socket."""

    @pytest.fixture
    def show(self, objects: Objects) -> Show:
        def show(root: Path) -> ObjectStoreBackend:
            objects.empty()
            objects.copy(root)
            return ObjectStoreBackend(URL)

        return show


class TestMemory(BackendSuite):
    @pytest.fixture
    def show(self) -> Show:
        files: dict[str, bytes] = {}

        def show(root: Path) -> MemoryBackend:
            files.clear()
            files.update(
                (path.relative_to(root).as_posix(), path.read_bytes())
                for path in root.rglob("*")
                if path.is_file()
            )
            return MemoryBackend("tests", files)

        return show
