"""Sealed files: what comes out is what went in, and nothing that was changed comes out."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtool.artifact import sealed
from kvtool.artifact.reading import BrokenArtifact
from kvtool.artifact.sealed import (
    Locked,
    key_id_of,
    open_file,
    plain_size,
    read_parts,
    seal,
    sealed_range,
    sealed_size,
    stat_plain,
    unseal,
    whole_chunks,
)
from kvtool.artifact.store_key import BadKey, StoreKey, new_store_key, store_keys

KEY = StoreKey(bytes(range(32)))
SIZES = [0, 1, 15, 16, 99, 100, 101, 199, 200, 201, 1000]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 bytes, and the key in the environment."""
    monkeypatch.setattr(sealed, "CHUNK", 100)
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", KEY.secret.hex())


def content(size: int) -> bytes:
    return bytes(n % 251 for n in range(size))


def sealed_bytes(data: bytes, step: int = 7) -> bytes:
    pieces = (data[start : start + step] for start in range(0, len(data), step))
    return b"".join(seal(pieces, KEY))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_is_read_again(size: int, tmp_path: Path) -> None:
    data, path = content(size), tmp_path / "file"
    made = sealed_bytes(data)
    assert len(made) == sealed_size(size)
    assert plain_size(len(made), "x") == size
    for step in (1, 13, 40, 116, 5000):
        assert b"".join(unseal((made[n : n + step] for n in range(0, len(made), step)), "x")) == data
    path.write_bytes(made)
    assert key_id_of(path) == KEY.id
    assert stat_plain(path).st_size == size
    with open_file(path) as file:
        assert file.read() == data
        assert file.read(1) == b""
        for start in range(0, size, 37):
            assert file.seek(start) == start
            assert file.read(150) == data[start : start + 150]
        assert file.seek(0, io.SEEK_END) == size


def test_a_file_that_is_not_sealed_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"kv", b"kvseal", content(300)):
        path.write_bytes(data)
        assert key_id_of(path) is None
        assert stat_plain(path).st_size == len(data)
        with open_file(path) as file:
            assert file.read() == data
        assert b"".join(unseal([data], "x")) == data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 1000), st.data())
def test_ranges_are_read_without_the_rest(size: int, drawn: st.DataObject) -> None:
    data = content(size)
    made = sealed_bytes(data, 100)
    cuts = sorted(drawn.draw(st.sets(st.integers(0, size), min_size=2, max_size=8)))
    ranges = [range(a, b) for a, b in itertools.pairwise(cuts)][::2]
    asked: list[range] = []

    def fetch(wanted: Sequence[range]) -> list[bytes]:
        asked.extend(wanted)
        return [made[one.start : one.stop] for one in wanted]

    assert read_parts(fetch, size, ranges, "x") == [data[one.start : one.stop] for one in ranges]
    # As a backend takes them: ascending, neither empty nor adjacent.
    assert all(one.stop < other.start for one, other in itertools.pairwise(asked))
    assert all(asked)
    needed = {index for one in ranges for index in range(one.start // 100, (one.stop - 1) // 100 + 1)}
    assert sum(map(len, asked)) <= 32 + len(needed) * 116


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 700), st.data())
def test_the_beginning_of_a_file_is_read_from_that_of_its_sealed_file(
    size: int, drawn: st.DataObject
) -> None:
    stop = drawn.draw(st.integers(1, size))
    end = sealed_range(range(stop), size).stop
    assert stop <= whole_chunks(end, size) <= size
    assert whole_chunks(0, size) == whole_chunks(31, size) == 0


@pytest.mark.parametrize("size", [0, 50, 100, 250])
def test_no_changed_bit_is_read(size: int, tmp_path: Path) -> None:
    made, path = sealed_bytes(content(size)), tmp_path / "file"
    for at in range(8, len(made)):
        changed = bytearray(made)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises((BrokenArtifact, Locked)), open_file(path) as file:
            file.read()
        with pytest.raises((BrokenArtifact, Locked)):
            b"".join(unseal([bytes(changed)], "x"))


def test_no_part_is_left_out_repeated_moved_or_added(tmp_path: Path) -> None:
    data, path = content(350), tmp_path / "file"
    made = sealed_bytes(data)
    head, chunks = made[:32], [made[32 + 116 * n : 148 + 116 * n] for n in range(4)]
    other = sealed_bytes(data)
    wrong = [
        [*chunks[:3]],
        [*chunks[:2], chunks[3]],
        [chunks[1], chunks[0], *chunks[2:]],
        [*chunks, chunks[3]],
        [*chunks, b"x"],
        [chunks[0], chunks[0], *chunks[2:]],
        [other[32:148], *chunks[1:]],
        [*chunks[:3], chunks[3][:-1]],
        [],
    ]
    for parts in wrong:
        changed = head + b"".join(parts)
        path.write_bytes(changed)
        with pytest.raises(BrokenArtifact), open_file(path) as file:
            file.read()
        with pytest.raises(BrokenArtifact):
            b"".join(unseal([changed], "x"))


def test_the_same_file_is_never_sealed_to_the_same_bytes() -> None:
    assert sealed_bytes(b"the same") != sealed_bytes(b"the same")


def test_a_key_that_is_missing_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(sealed_bytes(b"secret"))
    monkeypatch.delenv("KVTOOL_ENCRYPTION_KEY")
    with pytest.raises(Locked, match=f"is encrypted with key {KEY.id}, and none is given"):
        open_file(path)
    other = new_store_key()
    (tmp_path / "other.key").write_text(other.to_text())
    (tmp_path / "ours.key").write_text(KEY.to_text())
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", str(tmp_path / "other.key"))
    with pytest.raises(Locked, match=f"those given are {other.id}"):
        b"".join(unseal([path.read_bytes()], "x"))
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", f"{tmp_path}/other.key:{tmp_path}/ours.key")
    assert list(store_keys()) == [other.id, KEY.id]
    with open_file(path) as file:
        assert file.read() == b"secret"


def test_what_is_no_key_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", KEY.secret.hex()[:-1] + "z")
    with pytest.raises(BadKey, match="a text of 64 characters: cannot be read") as error:
        store_keys()
    assert KEY.secret.hex()[:20] not in str(error.value)
    (tmp_path / "a.key").write_text("no key")
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", str(tmp_path / "a.key"))
    with pytest.raises(BadKey, match="is no key of a store"):
        store_keys()
    assert repr(KEY) == "StoreKey()"
