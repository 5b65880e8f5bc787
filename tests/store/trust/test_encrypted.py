"""An encrypted store: nothing of a document's content in its files, and everything that a store does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool.artifact import sealed
from kvtool.artifact.pages import PartReader
from kvtool.artifact.reading import BrokenArtifact
from kvtool.artifact.sealed import Locked, key_id_of
from kvtool.artifact.store_key import StoreKey, new_store_key
from kvtool.codecs import Calibration
from kvtool.errors import KvtoolError, StoreError
from kvtool.measurement.scope import Scope
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.encrypt import encrypt
from kvtool.store.headers import headers_of, parts_of
from kvtool.store.layout import ARTIFACTS, CALIBRATIONS
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from kvtool.store.transfer.push import push
from kvtool.store.transfer.to_files import ToFiles
from kvtool.store.transfer.transfer import Report, transfer
from kvtool.system import files
from tests.store.conftest import aged, bytes_of, simple

SCOPE = Scope(documents=1, metrics=("times",), repeats=1)
THREE = ["c.txt", "docs/a.md", "docs/b.md"]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreKey:
    """In the environment."""
    key = new_store_key()
    (tmp_path / "ours.key").write_text(key.to_text())
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", str(tmp_path / "ours.key"))
    return key


@pytest.fixture
def plain(store: LocalStore) -> dict[str, torch.Tensor]:
    """The values of the first layer of each document, before the store is encrypted."""
    return {name: store.read(name).layers[0].values for name in store}


@pytest.fixture
def encrypted(store: LocalStore, calibrated: Calibration, plain: object, key: StoreKey) -> LocalStore:
    report = encrypt(store, key)
    assert report.encrypted == report.total == 8
    return LocalStore(store.root)


def files_of(root: Path) -> list[Path]:
    return [path for folder in (ARTIFACTS, CALIBRATIONS) for path in (root / folder).rglob("*.safetensors")]


def test_every_file_is_sealed_and_everything_is_read(
    encrypted: LocalStore, plain: dict[str, torch.Tensor], tiny: kvtool.Model, key: StoreKey
) -> None:
    assert {key_id_of(path) for path in files_of(encrypted.root)} == {key.id}
    for name in THREE:
        assert torch.equal(encrypted.read(name).layers[0].values, plain[name])
        assert encrypted.holds_whole(encrypted[name].segments[0].variants["raw"])
        encrypted.open(name, "centred").verify()
        encrypted.load(name, tiny)
    kvtool.blend(encrypted, THREE, tiny)
    assert encrypted.collect() == []


def test_what_is_written_is_sealed_too(
    encrypted: LocalStore, tiny: kvtool.Model, key: StoreKey, corpus: Path
) -> None:
    Path("more.txt").write_text("A further document, a few words long.")
    kvtool.prefill("more.txt", model=tiny, store=encrypted)
    kvtool.compress(encrypted, recipe="nf4")
    encrypted.open("more.txt", "nf4").verify()
    assert {key_id_of(path) for path in files_of(encrypted.root)} == {key.id}


def test_without_the_key_nothing_is_read_or_written(
    encrypted: LocalStore, tiny: kvtool.Model, key: StoreKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(encrypted.root / ARTIFACTS)
    for value in ("", new_store_key().secret.hex()):
        monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", value)
        store = LocalStore(encrypted.root)
        with pytest.raises(Locked, match=f"is encrypted with key {key.id}"):
            store.read("c.txt")
        report = kvtool.compress(store, recipe="nf4")
        assert report.problems
        Path("more.txt").write_text("A further document.")
        with pytest.raises(KvtoolError, match=f"key {key.id}"):
            kvtool.prefill("more.txt", model=tiny, store=store)
        assert list(store) == THREE
    assert bytes_of(encrypted.root / ARTIFACTS) == before


def test_a_flipped_bit_is_found_and_mended(encrypted: LocalStore, tiny: kvtool.Model) -> None:
    variant = encrypted["c.txt"].segments[0].variants["raw"]
    path = encrypted.path_of(variant)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(BrokenArtifact, match="chunk 0 of it has changed since it was sealed"):
        encrypted.open_artifact(variant).verify()
    encrypted.discard(variant)
    kvtool.prefill("c.txt", model=tiny, store=encrypted)
    encrypted.open("c.txt").verify()


def test_encrypting_goes_on_where_it_stopped(
    store: LocalStore, key: StoreKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len(files_of(store.root))

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    assert encrypt(store, key, dry_run=True).encrypted == total
    assert not store.marker.encrypted_with
    with pytest.raises(KeyboardInterrupt):
        encrypt(store, key, on_progress=stop)
    for name in THREE:
        LocalStore(store.root).open(name).verify()
    assert encrypt(LocalStore(store.root), key).encrypted == total - 1
    assert encrypt(LocalStore(store.root), key).encrypted == 0
    new = new_store_key()
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", f"{Path('new.key').absolute()}:{Path('old.key').absolute()}")
    Path("new.key").write_text(new.to_text())
    Path("old.key").write_text(key.to_text())
    assert encrypt(LocalStore(store.root), new).encrypted == total
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", new.secret.hex())
    LocalStore(store.root).open("c.txt").verify()


def test_encrypting_changes_no_file_s_age(store: LocalStore, key: StoreKey) -> None:
    aged(store, *(simple(float(n)) for n in range(8)))
    newest = store.calibrations.newest("mean", "m")
    encrypt(store, key)
    assert LocalStore(store.root).calibrations.newest("mean", "m") == newest


def test_a_key_that_is_missing_changes_nothing(
    encrypted: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(encrypted.root)
    new = new_store_key()
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", new.secret.hex())
    with pytest.raises(StoreError, match="is needed for this encrypted store"):
        encrypt(encrypted, new)
    assert bytes_of(encrypted.root) == before


def test_who_has_opened_it_before_writes_sealed_too(
    store: LocalStore, key: StoreKey, tiny: kvtool.Model
) -> None:
    opened = LocalStore(store.root)
    encrypt(store, key)
    kvtool.compress(opened, recipe="nf4")
    assert all(key_id_of(path) == key.id for path in files_of(store.root))


def test_measuring_leaves_nothing_in_the_clear(
    encrypted: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    write = files.write_atomic

    def watched(path: Path, chunks: Iterable[bytes | memoryview], *check: Any) -> int:
        data = [bytes(chunk) for chunk in chunks]
        if path.suffix == ".safetensors":
            written.append(data[0])
        return write(path, data, *check)

    monkeypatch.setattr(files, "write_atomic", watched)
    Path("long.txt").write_text("Some words. " * 20)
    kvtool.prefill("long.txt", model=tiny, store=encrypted)
    written.clear()
    kvtool.evaluate(encrypted, ["long.txt"], model=tiny, recipes=["nf4"], scope=SCOPE, fresh=True)
    assert len(written) >= 2
    assert all(data.startswith(b"kvseal") for data in written)


class TestRemote:
    def test_its_cache_is_sealed_too(
        self, encrypted: LocalStore, plain: dict[str, torch.Tensor], cache: Path, tiny: kvtool.Model
    ) -> None:
        remote = RemoteStore("", MemoryBackend("a", bytes_of(encrypted.root)))
        for name in THREE:
            assert torch.equal(remote.read(name).layers[0].values, plain[name])
            remote.open(name, "centred").verify()
        kept = list(cache.rglob("*.safetensors"))
        assert len(kept) == 7
        assert all(key_id_of(path) for path in kept)

    def test_headers_and_parts_are_read_without_the_rest(self, encrypted: LocalStore, cache: Path) -> None:
        remote = RemoteStore("", MemoryBackend("b", bytes_of(encrypted.root)))
        for name in THREE:
            whole = encrypted.open(name)
            assert torch.equal(headers_of(remote).open(name).token_ids, whole.token_ids)
            part = PartReader(parts_of(remote).open(name)).layers([1])[1]
            assert torch.equal(part.keys, whole.layer(1).keys)
        assert not list((remote.cache.root / ARTIFACTS).rglob("*.safetensors"))
        heads = list(cache.rglob("*.safetensors"))
        assert heads
        assert all(key_id_of(path) for path in heads)

    def test_a_flipped_bit_is_refused(self, encrypted: LocalStore, cache: Path) -> None:
        files = bytes_of(encrypted.root)
        name = f"{ARTIFACTS}/{(d := encrypted['c.txt'].segments[0].variants['raw'].artifact)[:2]}/{d}.safetensors"
        data = bytearray(files[name])
        data[-20] ^= 1
        remote = RemoteStore("", MemoryBackend("c", {**files, name: bytes(data)}))
        with pytest.raises(KvtoolError, match="has changed since it was sealed"):
            remote.read("c.txt")
        assert not list(cache.rglob(f"{d}*"))


class TestPush:
    def into(self, source: LocalStore, backend: MemoryBackend, *, decrypt: bool = False) -> Report:
        return transfer(
            source,
            ToFiles(backend),
            None,
            variant=None,
            overwrite=False,
            decrypt=decrypt,
            dry_run=False,
            on_progress=lambda _: None,
        )

    def test_a_new_place_is_encrypted_too(
        self,
        encrypted: LocalStore,
        plain: dict[str, torch.Tensor],
        key: StoreKey,
        tmp_path: Path,
        cache: Path,
    ) -> None:
        backend = MemoryBackend("new", {}, new=True)
        assert self.into(encrypted, backend).copied == THREE
        written = [data for file, data in backend.files.items() if file.endswith(".safetensors")]
        assert len(written) == 8
        assert all(data.startswith(b"kvseal") for data in written)
        again = MemoryBackend("new", backend.files)
        assert again.marker.encrypted_with == key.id
        assert self.into(encrypted, again).unchanged == THREE
        push(encrypted, tmp_path / "folder")
        copy = LocalStore(tmp_path / "folder")
        assert all(key_id_of(path) == key.id for path in files_of(copy.root))
        for store in (RemoteStore("", again), copy):
            assert torch.equal(store.read("c.txt").layers[0].values, plain["c.txt"])

    @pytest.mark.parametrize("decrypt", [False, True])
    def test_files_of_many_chunks_are_copied(
        self,
        store: LocalStore,
        key: StoreKey,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        decrypt: bool,
    ) -> None:
        monkeypatch.setattr(sealed, "CHUNK", 100)
        encrypt(store, key)
        if decrypt:
            LocalStore(tmp_path / "folder").require([])
        assert push(store, tmp_path / "folder", decrypt=decrypt).copied == THREE
        copy = LocalStore(tmp_path / "folder")
        assert {key_id_of(path) for path in files_of(copy.root)} == {None if decrypt else key.id}
        for name in THREE:
            copy.open(name).verify()

    def test_a_place_that_is_not_encrypted_is_refused(
        self, store: LocalStore, key: StoreKey, tmp_path: Path, cache: Path
    ) -> None:
        backend = MemoryBackend("open", {}, new=True)
        assert self.into(store, backend).copied == THREE
        push(store, tmp_path / "folder", ["c.txt"])
        encrypt(store, key)
        before = bytes_of(tmp_path / "folder")
        with pytest.raises(
            StoreError, match="gets artifacts as they are, and kv-store is encrypted; name a new store"
        ):
            push(store, tmp_path / "folder")
        assert bytes_of(tmp_path / "folder") == before
        opened = MemoryBackend("open", backend.files)
        with pytest.raises(StoreError, match="--decrypt"):
            self.into(store, opened)
        assert push(store, tmp_path / "folder", decrypt=True).copied == THREE[1:]
        assert not any(key_id_of(path) for path in files_of(tmp_path / "folder"))
        LocalStore(tmp_path / "folder").open("docs/a.md").verify()
        assert self.into(store, opened, decrypt=True).unchanged == THREE

    def test_of_two_first_pushers_none_leaves_a_mixture(
        self, store: LocalStore, encrypted: LocalStore, key: StoreKey
    ) -> None:
        """Both have looked before either began."""
        files: dict[str, bytes] = {}
        first, second = (MemoryBackend("race", files, new=True) for _ in range(2))
        assert self.into(encrypted, first).copied == THREE
        with pytest.raises(StoreError, match="was made by another at the same time"):
            self.into(encrypted, second, decrypt=True)
        assert all(
            data.startswith(b"kvseal") for file, data in files.items() if file.endswith(".safetensors")
        )

    def test_a_server_is_told_to_get_it_as_it_is(self, encrypted: LocalStore) -> None:
        with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1: gets artifacts as they are"):
            push(encrypted, "http://127.0.0.1:1")

    def test_a_place_with_another_key_keeps_its_own(
        self, encrypted: LocalStore, key: StoreKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = new_store_key()
        (tmp_path / "other.key").write_text(other.to_text())
        monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", f"{tmp_path}/ours.key:{tmp_path}/other.key")
        encrypt(LocalStore(tmp_path / "folder"), other)
        push(encrypted, tmp_path / "folder")
        assert {key_id_of(path) for path in files_of(tmp_path / "folder")} == {other.id}
        monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", other.secret.hex())
        LocalStore(tmp_path / "folder").open("c.txt").verify()
