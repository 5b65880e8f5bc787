"""The files of a store."""

from __future__ import annotations

from pathlib import Path

from kvtool.store.local import LocalStore

NONE = "0" * 64
"""A digest that nothing has."""


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def raw_of(store: LocalStore, name: str = "docs/a.txt") -> tuple[str, bytes]:
    variant = store[name].segments[0].variants["raw"]
    return variant.artifact, store.path_of(variant).read_bytes()
