"""Commands that write to a store in a bucket: prefill and compress, from several machines."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvtool
from kvtool.artifact.store_key import new_store_key
from kvtool.errors import FAILED
from kvtool.store.encrypt import encrypt
from kvtool.store.local import LocalStore
from kvtool.store.transfer.push import push
from tests.commands.conftest import THREE, Cli, error_of
from tests.loopback import URL, Objects, endpoint, objects

__all__ = ["endpoint", "objects"]

pytestmark = pytest.mark.usefixtures("objects")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Goes on from another machine, which has read nothing yet."""

    def go(name: str) -> None:
        monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / name))

    go("first")
    return go


def cached(machine: str, tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / machine).rglob("artifacts/??/*.safetensors"))


def test_two_machines_fill_a_bucket(
    cli: Cli, corpus: Path, machine: object, tmp_path: Path, tiny: kvtool.Model
) -> None:
    printed = cli("prefill", "c.txt", "docs", "--store", URL)
    assert "prefilled 3 documents" in printed.stderr
    assert f"→ {URL}" in printed.stderr
    assert list(kvtool.Store(URL)) == THREE
    assert "3 were there already" in cli("prefill", "c.txt", "docs", "--store", URL).stderr
    machine("second")  # type: ignore[operator]
    assert "compressed 3 documents" in cli("compress", "--recipe", "nf4", "--store", URL).stderr
    assert kvtool.Store(URL)["docs/a.md"].variants == ["raw", "nf4"]
    machine("third")  # type: ignore[operator]
    Path("more.txt").write_text("A further document, some words long.")
    cli("prefill", "more.txt", "--store", URL)
    # Of documents that are not asked for, nothing is fetched: here are the new one, raw and compressed, and the prefix.
    assert "compressed 1 document" in cli("compress", "more.txt", "--recipe", "nf4", "--store", URL).stderr
    assert len(cached("third", tmp_path)) == 3
    assert "4 were there already" in cli("compress", "--recipe", "nf4", "--store", URL).stderr
    machine("fourth")  # type: ignore[operator]
    store = kvtool.Store(URL)
    assert list(store) == sorted([*THREE, "more.txt"])
    assert all(document.variants == ["raw", "nf4"] for document in store.values())
    cli("verify", "--store", URL)


def test_what_was_removed_there_does_not_come_back(cli: Cli, corpus: Path, objects: Objects) -> None:
    cli("prefill", "c.txt", "docs", "--store", URL)
    objects.remove("manifests/c.txt.json")
    cli("compress", "--recipe", "nf4", "--store", URL)
    assert list(kvtool.Store(URL)) == THREE[1:]


def test_an_edited_document_is_replaced(cli: Cli, corpus: Path) -> None:
    cli("prefill", "c.txt", "--store", URL)
    before = kvtool.Store(URL)["c.txt"]
    with Path("c.txt").open("a") as file:
        file.write("One more sentence.")
    cli("prefill", "c.txt", "--store", URL)
    assert kvtool.Store(URL)["c.txt"].text_digest != before.text_digest


def test_an_encrypted_bucket_stays_so(
    cli: Cli, store: LocalStore, tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_store_key()
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", key.secret.hex())
    encrypt(store, key)
    push(store, URL)
    Path("more.txt").write_text("A further document, some words long.")
    cli("prefill", "more.txt", "--store", URL)
    cli("compress", "--recipe", "nf4", "--store", URL)
    files = objects.s3.list_objects_v2(Bucket="caches")["Contents"]
    sealed = [file["Key"] for file in files if file["Key"].endswith(".safetensors")]
    assert len(sealed) == 9
    for file in sealed:
        assert objects.s3.get_object(Bucket="caches", Key=file)["Body"].read(6) == b"kvseal"
    assert all(path.read_bytes().startswith(b"kvseal") for path in cached("first", tmp_path))
    cli("verify", "--store", URL)


def test_what_can_only_be_read(cli: Cli, store: LocalStore) -> None:
    address = f"file://{store.root.absolute()}"
    assert "is read only" in error_of(cli("prefill", "c.txt", "--store", address, code=FAILED))
    assert "is read only" in error_of(cli("compress", "--recipe", "nf4", "--store", address, code=FAILED))
