"""Keys of two parties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kvtool.store.trust.keys import make_key


@dataclass(frozen=True)
class Pair:
    """The files of a private key and of its public key."""

    private: Path
    public: Path


@pytest.fixture
def ours(tmp_path: Path) -> Pair:
    return _pair(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Pair:
    return _pair(tmp_path / "theirs")


def _pair(folder: Path) -> Pair:
    folder.mkdir()
    pair = Pair(folder / "key.pem", folder / "key.pub.pem")
    private, public = make_key()
    pair.private.write_bytes(private)
    pair.public.write_bytes(public)
    return pair
