"""What is compared: every recipe and tool at two settings or more, each with a source, and what differs."""

from __future__ import annotations

import pytest

from benchmarks.peers import environments
from benchmarks.quality.compared import METHODS, differs, peers, rows
from kvtool.codecs import recipes
from kvtool.compression.pipeline_options import parameters_of
from kvtool.errors import UsageError


@pytest.mark.parametrize("recipe", sorted(name for name, recipe in recipes().items() if not recipe.prunes))
def test_every_recipe_is_compared_at_two_settings(recipe: str) -> None:
    some = rows([recipe])
    assert len({row.setting for row in some}) >= 2
    assert any(row.advised for row in some)
    for row in some:
        parameters = parameters_of(row.setting.split(":")[1:], row.name, "")
        recipes()[recipe].check(parameters)


def test_every_tool_is_compared_at_two_settings() -> None:
    scripts = peers(rows())
    assert set(scripts) == set(environments.names())
    for script, some in scripts.items():
        text = environments.script(script).read_text()
        for row in some:
            assert f'"{row.family}"' in text
            assert len(rows([row.family])) >= 2


def test_every_row_says_who_advises_it_and_what_differs() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    for row in rows():
        assert row.advice.endswith(".")
        assert differs(row.family).endswith("."), row.family


def test_rows_are_chosen_by_name_or_by_method() -> None:
    assert [row.name for row in rows(["kivi:bits=2"])] == ["kivi:bits=2"]
    own = [row for row in rows(["klt"]) if row.own]
    assert len(own) == 3
    assert {row.setting for row in own} == {row.name for row in rows(["klt"]) if not row.own}
    assert len(rows()) > 2 * len(METHODS)
    with pytest.raises(UsageError, match="--rows nothing"):
        rows(["nothing"])
