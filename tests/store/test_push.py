"""Documents into a bucket, over a real socket, and into what behaves as badly as buckets can. In the end all is there."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvtool
from kvtool import Store
from kvtool.cli import app
from kvtool.errors import DONE, FAILED, PARTLY, USAGE, StoreError, UsageError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.backends.counted import OnBytes
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.backends.object_store import ObjectStoreBackend
from kvtool.store.backends.writable import Conflict
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from kvtool.store.transfer.destination import Destination
from kvtool.store.transfer.push import push
from kvtool.store.transfer.to_files import ToFiles
from kvtool.store.transfer.transfer import Report, transfer
from tests.loopback import URL, Objects, listen

THREE = ["c.txt", "docs/a.md", "docs/b.md"]

pytestmark = pytest.mark.usefixtures("cache")


def run(*arguments: str, code: int = DONE) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return str(result.stdout + result.stderr)


def send(store: Store, to: Destination, *names: str) -> Report:
    return transfer(
        store,
        to,
        names or None,
        variant=None,
        overwrite=False,
        dry_run=False,
        on_progress=lambda _: None,
    )


@pytest.fixture
def memory() -> MemoryBackend:
    """An empty place that can be written to."""
    return MemoryBackend("pushed", {}, new=True)


def read(backend: MemoryBackend) -> RemoteStore:
    return RemoteStore(backend.url, MemoryBackend("pushed", backend.files))


# Into a bucket


@pytest.mark.usefixtures("objects", "calibrated")
def test_a_bucket_gets_everything(store: LocalStore, tiny: kvtool.Model) -> None:
    assert "would push 3 documents" in run("push", URL, "--dry-run")
    with pytest.raises(StoreError, match="is not a kvtool store"):
        Store(URL)
    printed = json.loads(run("push", URL, "--json"))
    assert set(printed) == {"url", "store", "dry_run", "pushed", "unchanged", "problems", "bytes"}
    assert printed["pushed"] == THREE
    remote = Store(URL)
    assert dict(remote) == dict(store)
    for name in THREE:
        for variant in ("raw", "centred"):
            remote.open(name, variant).verify()
    remote.load("docs/a.md", tiny, "centred")
    assert "pushed 0 documents, 0 B; 3 were there already" in run("push", URL)


@pytest.mark.usefixtures("objects")
def test_what_is_there_is_not_sent_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    put = ObjectStoreBackend.put

    def counted(self: ObjectStoreBackend, file: str, path: Path, on_bytes: OnBytes) -> None:
        sent.append(file)
        put(self, file, path, on_bytes)

    monkeypatch.setattr(ObjectStoreBackend, "put", counted)
    push(store, URL, ["docs/a.md"], variant="raw")
    assert len(sent) == 2, "the prefix and the segment"
    kvtool.compress(store, "docs/a.md", recipe="lossless")
    sent.clear()
    report = push(store, URL, ["docs/a.md"])
    assert (report.copied, len(sent)) == (["docs/a.md"], 1)
    assert Store(URL)["docs/a.md"] == store["docs/a.md"]


@pytest.mark.usefixtures("objects")
def test_of_two_pushers_neither_loses_anything(store: LocalStore, tmp_path: Path) -> None:
    """Each adds a variant to the same document, and a document of its own, at the same time."""
    one, other = store, LocalStore(shutil.copytree(store.root, tmp_path / "other"))
    for mine, recipe, rest in ((one, "lossless", "docs/b.md"), (other, "kivi", "c.txt")):
        mine.remove(rest)
        kvtool.compress(mine, "docs/a.md", recipe=recipe)
    start, reports = threading.Barrier(2), []

    def racing(mine: LocalStore) -> None:
        start.wait()
        reports.append(push(mine, URL))

    threads = [threading.Thread(target=racing, args=(mine,)) for mine in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.problems for report in reports] == [[], []]
    remote = Store(URL)
    assert list(remote) == THREE
    assert remote["docs/a.md"].variants == ["raw", "kivi", "lossless"]


# Into what behaves badly


def test_a_manifest_that_changes_meanwhile_is_read_again(store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(shutil.copytree(store.root, tmp_path / "other"))
    kvtool.compress(store, "docs/a.md", recipe="lossless")
    kvtool.compress(other, "docs/a.md", recipe="kivi")

    class Raced(MemoryBackend):
        raced = False

        def swap(self, file: str, data: bytes, version: str | None) -> None:
            if file.startswith("manifests/") and not self.raced:
                self.raced = True
                assert not send(other, ToFiles(MemoryBackend("pushed", self.files))).problems
            super().swap(file, data, version)

    backend = Raced("pushed", {}, new=True)
    assert not send(store, ToFiles(backend), "docs/a.md").problems
    assert backend.raced
    assert read(backend)["docs/a.md"].variants == ["raw", "kivi", "lossless"]


def test_a_manifest_that_others_change_all_the_time(store: LocalStore) -> None:
    class Contested(MemoryBackend):
        def swap(self, file: str, data: bytes, version: str | None) -> None:
            if file.startswith("manifests/"):
                raise Conflict(file, "was changed")
            super().swap(file, data, version)

    (problem,) = send(store, ToFiles(Contested("pushed", {}, new=True)), "docs/a.md").problems
    assert "docs/a.md: was changed by others 20 times meanwhile; push again" in str(problem)


def test_a_place_that_ignores_conditions_is_refused(store: LocalStore) -> None:
    class Careless(MemoryBackend):
        """Keeps no condition, or that of new files alone."""

        keeps_new = False

        def swap(self, file: str, data: bytes, version: str | None) -> None:
            if version is None and self.keeps_new:
                super().swap(file, data, version)
            self.files[file] = data

    for files in ({}, {"kvtool-store.json": b'{"format":1}\n'}):
        for keeps_new in (False, True):
            backend = Careless("pushed", dict(files), new=True)
            backend.keeps_new = keeps_new
            with pytest.raises(StoreError, match="memory://pushed: ignores conditions: it replaced a file"):
                send(store, ToFiles(backend))


def test_a_long_upload_can_be_ended(store: LocalStore, memory: MemoryBackend) -> None:
    def interrupted(nbytes: int) -> None:
        raise KeyboardInterrupt

    variant = store["docs/a.md"].segments[0].variants["raw"]
    with pytest.raises(KeyboardInterrupt):
        ToFiles(memory).take(store, variant, interrupted)


def test_a_cut_artifact_is_sent_again(store: LocalStore, tmp_path: Path) -> None:
    push(store, tmp_path / "shared")
    other = LocalStore(tmp_path / "shared")
    path = other.open("docs/a.md").path
    path.write_bytes(path.read_bytes()[:-1])
    assert push(store, tmp_path / "shared").copied == ["docs/a.md"]
    other.open("docs/a.md").verify()


class Breaking(MemoryBackend):
    """A network that fails after some writes."""

    left = 10**6

    def _may(self, file: str) -> None:
        if not self.left:
            raise Unreachable(f"{self.url}/{file}", "cannot be reached (the service answered 503)")
        self.left -= 1

    def put(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        self._may(file)
        super().put(file, path, on_bytes)

    def swap(self, file: str, data: bytes, version: str | None) -> None:
        if file.startswith("manifests/"):
            self._may(file)
        super().swap(file, data, version)


@pytest.mark.usefixtures("calibrated")
def test_a_push_that_breaks_off_anywhere_goes_on(store: LocalStore) -> None:
    backend = Breaking("pushed", {}, new=True)
    breaks = 0
    while True:
        backend.left = 1
        report = send(store, ToFiles(backend))
        # Whatever can be read is whole.
        remote = read(backend)
        for name in remote:
            for variant in remote[name].artifacts:
                assert len(backend.files[f"artifacts/{variant.artifact[:2]}/{variant.artifact}.safetensors"])
        if not report.problems:
            break
        assert all(isinstance(problem, Unreachable) for problem in report.problems)
        breaks += 1
    assert breaks > 5
    assert dict(read(backend)) == dict(store)


def test_a_file_that_arrives_cut(
    store: LocalStore, memory: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(file: str, path: Path, on_bytes: OnBytes) -> None:
        memory.files[file] = path.read_bytes()[:-1]

    with monkeypatch.context() as patch:
        patch.setattr(memory, "put", cut)
        report = send(store, ToFiles(memory), "docs/a.md")
    assert "bytes after" in str(report.problems[0])
    assert not list(read(memory))
    assert send(store, ToFiles(memory), "docs/a.md").copied == ["docs/a.md"]
    read(memory).open("docs/a.md").verify()


def test_a_broken_artifact_stays_here(store: LocalStore, memory: MemoryBackend) -> None:
    path = store.open("docs/a.md").path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = send(store, ToFiles(memory))
    assert report.copied == ["c.txt", "docs/b.md"]
    assert "has changed since it was written" in str(report.problems[0])
    assert not any(path.stem in file for file in memory.files)


def test_another_document_of_that_name_is_not_replaced(store: LocalStore, tiny: kvtool.Model) -> None:
    backend = MemoryBackend("pushed", {}, new=True)
    send(store, ToFiles(backend))
    Path("c.txt").write_text("Something else.")
    kvtool.prefill(["c.txt"], model=tiny, store=store)
    report = send(store, ToFiles(backend))
    assert (report.copied, report.unchanged) == ([], THREE[1:])
    assert "its text, model or prefix is another in memory://pushed" in str(report.problems[0])
    report = transfer(
        store,
        ToFiles(backend),
        None,
        variant=None,
        overwrite=True,
        dry_run=False,
        on_progress=lambda _: None,
    )
    assert report.copied == ["c.txt"]
    assert dict(read(backend)) == dict(store)


# Elsewhere


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_directory_gets_everything(store: LocalStore, tmp_path: Path, scheme: str) -> None:
    to = f"{scheme}{tmp_path}/shared store"
    run("push", to)
    other = LocalStore(tmp_path / "shared store")
    assert dict(other) == dict(store)
    run("verify", "--store", str(other.root))
    assert list(other.calibrations) == list(store.calibrations)


@pytest.mark.usefixtures("objects", "calibrated")
def test_from_a_bucket_to_another_place(store: LocalStore, memory: MemoryBackend) -> None:
    push(store, URL)
    assert not send(Store(URL), ToFiles(memory)).problems
    assert dict(read(memory)) == dict(store)


def test_where_nothing_can_be_written(
    store: LocalStore, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError, match=r"store ftp://host: cannot be written to; expected a directory, s3:"
    ):
        push(store, "ftp://host")
    assert "c.txt: is not in the store" not in run("push", "s3://", code=USAGE)
    assert "docs/z.md: is not in the store" in run("push", URL, "docs/z.md", code=FAILED)
    assert "pushed 1 document" in run("push", URL, "docs/a.md", "docs/z.md", code=PARTLY)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A service that refuses to be written to."""

    async def refuse(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        if scope["type"] != "http":
            return
        status = 404 if scope["method"] in ("GET", "HEAD") else 403
        await send({"type": "http.response.start", "status": status, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    with listen(refuse, lifespan="off") as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("forbidden", "store")
def test_a_bucket_without_permission(cache: Path) -> None:
    printed = run("push", URL, code=FAILED)
    assert (
        f"error: {URL}/kvtool-store.json: may not be written (403); check that AWS_ACCESS_KEY_ID" in printed
    )
    assert "hidden-key" not in printed
