"""kvtool show: its JSON, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvtool
from kvtool import Store
from tests.commands.conftest import Cli, typed


def test_show(cli: Cli, store: Store) -> None:
    kvtool.compress(store, recipe="kivi")
    shown = json.loads(cli("show", "c.txt", "--json").stdout)
    variant = {"digest": "str", "file": "str", "bytes": "int", "bits_per_value": "float"}
    variant["resident_bytes"] = "int"
    recipe = shown["segments"][0]["variants"]["kivi"].pop("recipe")
    assert recipe["name"] == "kivi"
    assert typed(shown) == {
        "name": "str",
        "model": {"name": "str", "fingerprint": "str"},
        "prefix": {
            "identity": "str",
            "digest": "str",
            "tokens": "int",
            "origin": {"kind": "str", "system": None},
        },
        "blend": None,
        "segments": [
            {
                "segment": "int",
                "tokens": "int",
                "characters": ["int"],
                "identity": "str",
                "variants": {"raw": variant | {"recipe": None}, "kivi": variant},
            }
        ],
        "calibrations": [],
    }
    for variant in shown["segments"][0]["variants"].values():
        path = Path(variant["file"])
        assert path.stem == variant["digest"]
        assert path.stat().st_size == variant["bytes"]
        assert variant["bits_per_value"] == round(8 * variant["bytes"] / store.read("c.txt").n_elements, 4)
    assert "30 tokens" in cli("show", "c.txt").stdout


@pytest.mark.parametrize("heads", ["across", "tokens"])
def test_a_pruned_variant_is_shown_with_the_memory_that_its_tokens_take(
    cli: Cli, store: Store, tiny: kvtool.Model, heads: str
) -> None:
    kvtool.compress(store, recipe="keydiff", keep=0.3, heads=heads, name="pruned")
    variants = json.loads(cli("show", "c.txt", "--json").stdout)["segments"][0]["variants"]
    n_prefix = len(store.parts("c.txt")[0].token_ids)
    for name, variant in variants.items():
        cache = store.load("c.txt", tiny, variant=name)
        cache.fit(0)
        prefix = n_prefix * 4 * (2 * 2 * 2 * 8 + (0 if name == "raw" else 2 if heads == "tokens" else 4))
        assert variant["resident_bytes"] == cache.nbytes - prefix
    assert variants["pruned"]["resident_bytes"] < 0.35 * variants["raw"]["resident_bytes"]
    shown = cli("show", "c.txt").stdout
    assert all(f"{variant['resident_bytes']:,} bytes in memory" in shown for variant in variants.values())
    assert "pruned" in cli("ls").stdout
    assert " 0 are not" in cli("verify").stderr
