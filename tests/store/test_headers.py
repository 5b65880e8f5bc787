"""Of a remote store's artifacts only the beginnings are fetched for readers of headers and token ids."""

from __future__ import annotations

import pytest

import kvtool
from kvtool import Store
from kvtool.codecs import Calibration
from kvtool.errors import ArtifactError, StoreError
from kvtool.store import headers
from kvtool.store.backends.directory import DirectoryBackend
from kvtool.store.headers import headers_of
from kvtool.store.local import LocalStore

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def url(store: LocalStore) -> str:
    return f"file://{store.root.resolve()}"


@pytest.mark.parametrize("first", [8, 100, None], ids=["header apart", "header in two", "all at once"])
@pytest.mark.parametrize("variant", ["raw", "centred"])
def test_they_say_what_the_whole_says(
    url: str,
    store: LocalStore,
    calibrated: Calibration,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    first: int | None,
) -> None:
    remote, whole = Store(url), store.open("docs/a.md", variant)
    enough = whole.offsets["token_ids"] + 4 * len(whole.token_ids)
    monkeypatch.setattr(headers, "FIRST", first or enough)
    head = headers_of(remote).open("docs/a.md", variant)
    assert head.token_ids.equal(whole.token_ids)
    assert head.meta == whole.meta
    assert not list(remote.cache.root.rglob(f"{whole.digest}*"))
    with pytest.raises(ArtifactError, match="has changed"):
        head.kv()
    assert remote.read("docs/a.md", variant).layers[0].keys.equal(whole.kv().layers[0].keys)


def test_the_second_time_nothing_is_asked(
    url: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers_of(Store(url)).open("docs/a.md")
    again = headers_of(Store(url))
    monkeypatch.setattr(DirectoryBackend, "parts", None)
    assert len(again.open("docs/a.md").token_ids)


def test_one_that_broke_is_fetched_again(url: str, store: LocalStore) -> None:
    path = headers_of(Store(url)).open("docs/a.md").path
    path.write_bytes(path.read_bytes()[:40])
    assert headers_of(Store(url)).open("docs/a.md").token_ids.equal(store.open("docs/a.md").token_ids)


@pytest.mark.parametrize("where", [20, "token_ids"])
def test_what_was_changed_is_not_kept(url: str, store: LocalStore, where: int | str) -> None:
    artifact = store.open("docs/a.md")
    data = bytearray(artifact.path.read_bytes())
    data[where if isinstance(where, int) else artifact.offsets[where]] ^= 1
    artifact.path.write_bytes(data)
    with pytest.raises((ArtifactError, StoreError)):
        headers_of(Store(url)).open("docs/a.md")
    assert not list((kvtool.system.cache_dir.cache_dir() / "heads").rglob("*.safetensors"))
