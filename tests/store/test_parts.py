"""Parts of a remote store's artifacts: what is read equals what a file gives, and nothing else comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool import Store
from kvtool.artifact.paged_cache import PagedCache, paged_cache
from kvtool.engines.generate import generate
from kvtool.errors import ArtifactError
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Limits, Service
from kvtool.store.backends.byte_ranges import parse_parts
from kvtool.store.headers import parts_of
from kvtool.store.local import LocalStore
from tests.loopback import listen

pytestmark = pytest.mark.usefixtures("cache")

NAME = "a.txt"


@pytest.fixture(scope="module")
def deep(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    directory = tmp_path_factory.mktemp("models") / "deep"
    make_model(directory, num_hidden_layers=4, initializer_range=0.3)
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture
def local(deep: kvtool.Model, tmp_path: Path) -> LocalStore:
    (tmp_path / NAME).write_text(" ".join(f"House {n * 7919 % 900} has {n % 90} doors." for n in range(16)))
    store = LocalStore(tmp_path / "local")
    kvtool.prefill([tmp_path / NAME], model=deep, store=store)
    kvtool.compress(store, recipe="quest")
    return store


@pytest.fixture(params=["http", "file"])
def remote(request: pytest.FixtureRequest, deep: kvtool.Model, local: LocalStore) -> Iterator[Store]:
    if request.param == "file":
        yield Store(f"file://{local.root.resolve()}")
        return
    serving = Service.over(local.root, deep, Limits(memory=1 << 28), loading=LoadOptions("raw"))
    with listen(create_app(serving)) as url:
        yield Store(url)


def answer(model: kvtool.Model, store: Store, share: float) -> tuple[list[int], PagedCache]:
    cache = paged_cache(parts_of(store).parts(NAME, "quest"), model, share)
    question = [int(byte) for byte in b"How many doors?"]
    return generate(model, [*cache.token_ids.tolist(), *question], cache, max_tokens=6), cache


def test_what_is_read_is_what_a_file_gives(deep: kvtool.Model, local: LocalStore, remote: Store) -> None:
    for share in (0.2, 1.0):
        tokens, cache = answer(deep, remote, share)
        expected, own = answer(deep, local, share)
        assert tokens == expected
        assert cache.read_nbytes == own.read_nbytes
        for layer, other in zip(cache.layers, own.layers, strict=True):
            assert torch.equal(layer.keys, other.keys)
            assert torch.equal(layer.values, other.values)
    assert not list(remote.cache.root.rglob("*.safetensors"))  # type: ignore[attr-defined]


def test_a_document_that_was_fetched_is_read_from_its_copy(
    deep: kvtool.Model, local: LocalStore, remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.load(NAME, deep, "quest")
    monkeypatch.setattr(type(remote.backend), "parts", None)  # type: ignore[attr-defined]
    assert answer(deep, remote, 0.2)[0] == answer(deep, local, 0.2)[0]


def test_a_flipped_byte_is_noticed(deep: kvtool.Model, local: LocalStore, remote: Store) -> None:
    answer(deep, remote, 0.2)
    artifact = local.open(NAME, "quest")
    data = bytearray(artifact.path.read_bytes())
    data[artifact.offsets["layers.0003.values"] + 7] ^= 1
    artifact.path.write_bytes(data)
    with pytest.raises(ArtifactError, match="page 0 of layer 3 has changed"):
        answer(deep, remote, 1.0)


HEAD = "--b\r\nContent-Type: x\r\nContent-Range: bytes {}-{}/100\r\n\r\n"
MULTIPART = {"Content-Type": "multipart/byteranges; boundary=b"}


def body(*parts: tuple[int, bytes]) -> bytes:
    whole = b"".join(
        HEAD.format(start, start + len(data) - 1).encode() + data + b"\r\n" for start, data in parts
    )
    return whole + b"--b--"


def test_parts_of_an_answer() -> None:
    ranges = [range(2, 5), range(10, 16)]
    # What looks like the end of a part is data.
    parts = [b"abc", b"\r\n--b\r"[:6]]
    assert parse_parts(MULTIPART, body((2, parts[0]), (10, parts[1])), ranges) == parts
    assert parse_parts({"Content-Range": "bytes 2-4/100"}, b"abc", ranges[:1]) == parts[:1]


@pytest.mark.parametrize(
    ("headers", "data", "ranges"),
    [
        ({}, b"abc", [range(2, 5)]),
        ({"Content-Range": "bytes 3-5/100"}, b"abc", [range(2, 5)]),
        ({"Content-Range": "bytes 2-4/100"}, b"ab", [range(2, 5)]),
        ({"Content-Type": "text/plain"}, body((2, b"abc"), (10, b"x")), [range(2, 5), range(10, 11)]),
        (MULTIPART, body((2, b"abc")), [range(2, 5), range(10, 11)]),
        (MULTIPART, body((10, b"x"), (2, b"abc")), [range(2, 5), range(10, 11)]),
        (MULTIPART, body((2, b"abc"), (10, b"x"))[:-9], [range(2, 5), range(10, 11)]),
        (MULTIPART, b"", [range(2, 5), range(10, 11)]),
    ],
)
def test_other_answers_are_refused(headers: dict[str, str], data: bytes, ranges: Sequence[range]) -> None:
    with pytest.raises(ValueError, match=r"bytes|multipart|cut off"):
        parse_parts(headers, data, ranges)
