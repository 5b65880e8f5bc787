"""kvtool recipes: the list, one in full, an unknown one."""

from __future__ import annotations

import json

from kvtool.errors import USAGE
from tests.commands.conftest import Cli, error_of


def test_recipes(cli: Cli) -> None:
    rows = json.loads(cli("recipes", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == sorted(by_name)
    assert {"kivi", "lossless"} <= by_name.keys()
    for row in rows:
        assert row.keys() == {
            *("name", "summary", "paper", "needs", "nominal_bits", "parameters", "presets", "measured")
        }
        assert (row["nominal_bits"] is None) == (row["needs"] == ["calibration"])
        assert 0 < (row["nominal_bits"] or 1) <= 17
        for parameter in row["parameters"].values():
            assert parameter.keys() == {"default", "allowed", "help"}
    assert by_name["zipcache"]["needs"] == ["attention"]
    assert by_name["kvzip"]["nominal_bits"] == 16 * by_name["kvzip"]["parameters"]["keep"]["default"]
    keeping, dropping = cli("recipes").stdout.split("\n\n")
    names = [line.split()[0] for part in (keeping, dropping) for line in part.splitlines()[1:]]
    assert sorted(names) == list(by_name)
    assert "\nkivi " in keeping
    assert "\nkvzip " in dropping
    page = cli("recipes", "kivi").stdout
    assert "What differs." in page
    assert "group=32" in page
    assert json.loads(cli("recipes", "kivi", "--json").stdout) == by_name["kivi"]
    assert "'kiwi'" in error_of(cli("recipes", "kiwi", code=USAGE))
