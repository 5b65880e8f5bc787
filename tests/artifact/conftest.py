"""Writing an artifact and reading it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kvtool
from kvtool.artifact.read import Artifact
from kvtool.artifact.write import digest_tensor, raw_content, serialize
from kvtool.codecs import KV
from kvtool.model.chat_template import Prefix

UNDER = Prefix((258, 7, 7), "\n", {"kind": "none"})
KVs = Callable[..., KV]
Write = Callable[[KV], Path]


@pytest.fixture
def write(tiny: kvtool.Model, tmp_path: Path) -> Write:
    def write(kv: KV) -> Path:
        whole, chunks = serialize(raw_content(kv, tiny, UNDER, {"document": "x.md"}))
        path = tmp_path / f"{whole}.safetensors"
        path.write_bytes(b"".join(chunks))
        return path

    return write


def read_all(path: Path, expected: str | None = None) -> KV:
    opened = Artifact.open(path, expected=expected)
    opened.verify()
    return opened.kv()


def same(a: KV, b: KV) -> bool:
    pairs = [(a.token_ids, b.token_ids)]
    for x, y in zip(a.layers, b.layers, strict=True):
        pairs += [(x.keys, y.keys), (x.values, y.values), (x.positions, y.positions)]
    return all(
        x.dtype == y.dtype and x.shape == y.shape and digest_tensor(x) == digest_tensor(y) for x, y in pairs
    )
