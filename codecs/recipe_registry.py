"""Recipes by name: the entry points of the group ``kvtool.recipes``, each of which is a collection of recipes.

kvtool's own are found that way too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from kvtool.codecs.errors import CodecError
from kvtool.codecs.recipe import Recipe, combined


def recipe(name: str) -> Recipe:
    """The recipe of that name, or the combination of two, as in ``kvzip+kivi``: what the first leaves, coded by the second.

    Raises CodecError, with the names there are, and for two that do not go together.
    """
    first, plus, second = name.partition("+")
    if plus:
        return combined(recipe(first), recipe(second))
    known = recipes()
    if name not in known:
        have = ", ".join(known) or "none: is kvtool installed, so that its entry points can be found?"
        raise CodecError(f"no recipe is called {name!r}; there are: {have}")
    return known[name]


def is_recipe(name: str) -> bool:
    """Whether ``recipe`` knows it."""
    return all(part in recipes() for part in name.split("+"))


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every recipe, by name, in alphabetical order."""
    found: dict[str, Recipe] = {}
    for point in entry_points(group="kvtool.recipes"):
        for item in point.load():
            if found.setdefault(item.name, item) is not item:
                raise CodecError(f"recipe {item.name!r} comes twice, the second time from {point.value}")
    return dict(sorted(found.items()))
