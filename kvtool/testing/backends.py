"""Tests that every backend of a store passes. A backend's own tests derive from the suite and say how to show a store::

    from kvtool.testing.backends import BackendSuite

    class TestMine(BackendSuite):
        @pytest.fixture
        def show(self):
            def show(root):  # the directory of a local store
                upload(root, "mine://tests")
                return MyBackend("mine://tests")
            return show

``show`` is called again after the directory has changed; backends that it gave before show the change too, from then on.
``pytest.register_assert_rewrite("kvtool.testing.backends")`` in a conftest.py makes failures say more.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from kvtool.calibration.calibrate import calibrate
from kvtool.codecs import KV, Calibration
from kvtool.compression.compress import compress
from kvtool.errors import ArtifactError, StoreError
from kvtool.model.model import Model, load_model
from kvtool.prefilling.prefill import prefill
from kvtool.store.backends.backend import Backend, Listed, NotThere, Unreachable
from kvtool.store.catalog import remote as catalog
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.headers import headers_of
from kvtool.store.layout import Marker
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document, Variant
from kvtool.store.remote import RemoteStore
from kvtool.testing.tiny_model import save_model

Show: TypeAlias = Callable[[Path], Backend]

NAMES = ["docs/guide.md", "docs/notes.md", "readme.txt"]
ODD_NAMES = [
    "50% off?.txt",
    "a#b*c.txt",
    "x.json/~y",
    ".tmp-z",
    "ü [a]{b}^`'.txt",
    "a  b:c|d.txt",
    "a+b&c=d.txt",
]
CALIBRATED = "kvtc"
NOWHERE = "0" * 64


@dataclass(frozen=True)
class Example:
    """A store of ``NAMES``, raw and compressed with a calibration, and the model that made it."""

    root: Path
    model: Model
    calibration: Calibration


class BackendSuite:
    """Derive from it, and give the fixture ``show``."""

    @pytest.fixture
    def show(self) -> Show:
        """Gives a backend that shows the local store in a directory, as it is now."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def example(cls, tmp_path_factory: pytest.TempPathFactory) -> Example:
        folder = tmp_path_factory.mktemp("example")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            model = load_model(save_model(folder / "model"), device="cpu")
            for number, name in enumerate(NAMES):
                Path(name).parent.mkdir(exist_ok=True)
                Path(name).write_text(f"Document {number} says that {name} is stored.\n" * 4)
            store = LocalStore(folder / "store")
            assert not prefill(NAMES, model=model, store=store).problems
            calibration = calibrate(store, model=model, recipe=CALIBRATED)
            compress(store, recipe=CALIBRATED, calibration=calibration)
        return Example(store.root, model, calibration)

    @pytest.fixture
    def model(self, example: Example) -> Model:
        return example.model

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The cache directory, which has nothing of other tests."""
        monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
        return tmp_path / "cache"

    @pytest.fixture
    def local(self, example: Example, tmp_path: Path) -> LocalStore:
        """The example's store, to be changed."""
        return LocalStore(shutil.copytree(example.root, tmp_path / "local"))

    @pytest.fixture
    def backend(self, show: Show, local: LocalStore) -> Backend:
        return show(local.root)

    @pytest.fixture
    def remote(self, backend: Backend) -> RemoteStore:
        return RemoteStore(backend.url, backend)

    # What a backend gives

    def test_the_key_is_a_name_and_stays(self, backend: Backend, show: Show, local: LocalStore) -> None:
        assert re.fullmatch(r"[\w-]{8,64}", backend.key)
        assert show(local.root).key == backend.key

    def test_documents_are_listed(self, backend: Backend, local: LocalStore) -> None:
        listed = backend.documents()
        assert sorted(listed) == NAMES
        for name in NAMES:
            # Clocks differ, and some count whole seconds; uploading takes a while.
            assert listed[name].committed == pytest.approx(local.committed(name), abs=3600)

    def test_a_version_changes_with_its_manifest(
        self, backend: Backend, show: Show, local: LocalStore
    ) -> None:
        before = backend.documents()
        local.commit(changed(local[NAMES[0]]))
        show(local.root)
        after = backend.documents()
        assert after[NAMES[0]].version != before[NAMES[0]].version or not before[NAMES[0]].version
        assert all(after[name].version == before[name].version for name in NAMES[1:])

    def test_a_document_that_is_removed_is_listed_no_more(
        self, backend: Backend, show: Show, local: LocalStore
    ) -> None:
        local.remove(NAMES[0])
        show(local.root)
        assert sorted(backend.documents()) == NAMES[1:]
        with pytest.raises(NotThere):
            backend.manifest(NAMES[0])

    def test_manifests_come_to_the_byte(self, backend: Backend, local: LocalStore) -> None:
        assert [backend.manifest(name) for name in NAMES] == [local[name].to_bytes() for name in NAMES]

    def test_artifacts_come_whole(self, backend: Backend, local: LocalStore) -> None:
        for variant in local[NAMES[0]].artifacts:
            data = b"".join(backend.artifact(variant.artifact, variant.nbytes))
            assert data == local.path_of(variant).read_bytes()

    def test_artifacts_come_in_parts(self, backend: Backend, local: LocalStore) -> None:
        variant = raw(local, NAMES[0])
        data = local.path_of(variant).read_bytes()
        end = len(data)
        every = [[range(8)], [range(8, 100)], [range(end)], [range(8), range(9, 100), range(end - 1, end)]]
        every.append([range(start, start + 3) for start in range(0, end - 3, end // 300)])
        for ranges in every:
            parts = backend.parts(variant.artifact, ranges)
            assert list(parts) == [data[wanted.start : wanted.stop] for wanted in ranges]

    def test_more_bytes_than_were_named_are_refused(self, backend: Backend, local: LocalStore) -> None:
        variant = raw(local, NAMES[0])
        with pytest.raises(StoreError, match="more than"):
            for _ in backend.artifact(variant.artifact, variant.nbytes - 1):
                pass

    def test_calibrations_come_to_the_byte(self, backend: Backend, example: Example) -> None:
        data = b"".join(backend.calibration(example.calibration.digest))
        assert data == example.calibration.to_bytes()

    def test_what_is_missing_is_not_there(self, backend: Backend) -> None:
        reads: list[Callable[[], object]] = [
            lambda: backend.manifest("docs/none.md"),
            lambda: list(backend.artifact(NOWHERE, 100)),
            lambda: backend.parts(NOWHERE, [range(8)]),
            lambda: list(backend.calibration(NOWHERE)),
        ]
        for read in reads:
            with pytest.raises(NotThere):
                read()

    def test_odd_names_are_found(self, show: Show, local: LocalStore) -> None:
        for name in ODD_NAMES:
            local.commit(replace(local[NAMES[0]], name=name))
        backend = show(local.root)
        assert sorted(backend.documents()) == sorted([*NAMES, *ODD_NAMES])
        assert all(backend.manifest(name) == local[name].to_bytes() for name in ODD_NAMES)
        assert dict(RemoteStore(backend.url, backend)) == dict(local)

    # A store over it

    def test_a_store_over_it_is_the_local_one(
        self, remote: RemoteStore, local: LocalStore, example: Example
    ) -> None:
        assert list(remote) == NAMES
        assert dict(remote) == dict(local)
        assert NAMES[0] in remote
        assert "docs/none.md" not in remote
        for name in NAMES:
            for variant in ("raw", CALIBRATED):
                assert same(remote.read(name, variant), local.read(name, variant))
                remote.open(name, variant).verify()
        loaded, own = (store.load(NAMES[0], example.model, CALIBRATED) for store in (remote, local))
        for one, other in zip(loaded.layers, own.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)
        assert list(remote.calibrations) == [example.calibration.digest]

    def test_headers_are_read_without_keys_and_values(self, remote: RemoteStore, local: LocalStore) -> None:
        for name in NAMES:
            header = headers_of(remote).open(name, CALIBRATED)
            assert torch.equal(header.token_ids, local.open(name).token_ids)
        assert not list(remote.cache.root.glob("artifacts/*/*"))

    def test_a_manifest_that_changes_or_goes_is_followed(
        self, remote: RemoteStore, show: Show, local: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalog, "FRESH", 0.0)
        before = remote[NAMES[0]]
        local.commit(changed(before))
        show(local.root)
        assert remote[NAMES[0]] == local[NAMES[0]] != before
        local.remove(NAMES[0])
        show(local.root)
        with pytest.raises(DocumentMissing):
            remote[NAMES[0]]
        assert NAMES[0] not in remote.cache

    def test_what_was_read_is_served_while_nothing_answers(
        self, remote: RemoteStore, backend: Backend, local: LocalStore
    ) -> None:
        remote.read(NAMES[0], CALIBRATED)
        unplugged = RemoteStore(backend.url, Unplugged(backend.url, backend.key))
        assert same(unplugged.read(NAMES[0], CALIBRATED), local.read(NAMES[0], CALIBRATED))
        for read in (lambda: unplugged.read(NAMES[0]), lambda: unplugged[NAMES[1]], lambda: list(unplugged)):
            with pytest.raises(Unreachable):
                read()

    @pytest.mark.parametrize("at", [20, -1], ids=["header", "values"])
    def test_a_flipped_byte_is_refused(self, show: Show, local: LocalStore, at: int) -> None:
        path = local.path_of(raw(local, NAMES[0]))
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        backend = show(local.root)
        remote = RemoteStore(backend.url, backend)
        with pytest.raises(ArtifactError, match=path.stem):
            remote.read(NAMES[0])
        assert not list(remote.cache.root.rglob(f"{path.stem}*"))
        assert not list(remote.cache.root.rglob(".tmp-*"))


@dataclass
class Unplugged:
    """A backend that nobody reaches."""

    url: str
    key: str
    marker: Marker = field(default_factory=Marker)

    def documents(self) -> Mapping[str, Listed]:
        raise Unreachable(self.url, "is unplugged")

    def manifest(self, name: str) -> bytes:
        raise Unreachable(self.url, "is unplugged")

    def artifact(self, digest: str, nbytes: int) -> Iterator[bytes]:
        raise Unreachable(self.url, "is unplugged")

    def parts(self, digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        raise Unreachable(self.url, "is unplugged")

    def calibration(self, digest: str) -> Iterator[bytes]:
        raise Unreachable(self.url, "is unplugged")


def raw(store: LocalStore, name: str) -> Variant:
    return store[name].segments[0].variants["raw"]


def changed(document: Document) -> Document:
    """``document`` with one more name for its raw artifact."""
    return document.with_variant(0, "copy", document.segments[0].variants["raw"])


def same(one: KV, other: KV) -> bool:
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(one.layers, other.layers, strict=True)
    )
