"""kvtool show: its JSON, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import kvtool
from kvtool import Store
from tests.commands.conftest import Cli, typed


def test_show(cli: Cli, store: Store) -> None:
    kvtool.compress(store, recipe="kivi")
    shown = json.loads(cli("show", "c.txt", "--json").stdout)
    variant = {"digest": "str", "file": "str", "bytes": "int", "bits_per_value": "float"}
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
