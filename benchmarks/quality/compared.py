"""What is compared: every recipe and every peer, at which settings, who advises them, and what differs.

A new row is a line in ``compared_recipes.py`` or ``compared_peers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.quality.compared_peers import PEERS
from benchmarks.quality.compared_recipes import RECIPES
from benchmarks.quality.method import OWN, Method
from kvtool.codecs import recipes
from kvtool.errors import UsageError

METHODS: Mapping[str, Method] = {**RECIPES, **PEERS}
"""By the name of a recipe, or of a peer's method."""


@dataclass(frozen=True)
class Row:
    """One setting of a method. ``advised``: by its authors; otherwise it is a further point that kvtool adds.

    ``name`` is unique. ``own``: calibrated on the store's own documents, as ``kvtool compress`` does by itself, and not
    on the texts that all other rows are calibrated on.
    """

    name: str
    advised: bool
    advice: str
    method: Method = field(repr=False)

    @property
    def setting(self) -> str:
        return self.name.removesuffix(OWN)

    @property
    def own(self) -> bool:
        return self.name.endswith(OWN)

    @property
    def family(self) -> str:
        return self.setting.partition(":")[0]


def rows(chosen: Iterable[str] = ()) -> list[Row]:
    """All rows, or those that ``chosen`` names, by a row's name or by that of its method. Raises ``UsageError``."""
    everything = [
        Row(name, advised, advice, method)
        for method in METHODS.values()
        for advised, some in ((True, method.authors), (False, method.kvtool))
        for name, advice in some.items()
    ]
    chosen = list(chosen)
    known = {row.name for row in everything} | set(METHODS)
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"--rows {unknown[0]}", "is no row", f"methods are {', '.join(METHODS)}")
    return [row for row in everything if not chosen or {row.name, row.family} & set(chosen)]


def differs(name: str) -> str:
    """What differs from the authors' code: a recipe's docstring says it after "What differs."."""
    if METHODS[name].differs:
        return METHODS[name].differs
    docstring = recipes()[name].make.__doc__ or ""
    return re.sub(r"\s+", " ", docstring.partition("What differs.")[2]).strip().replace("``", "`")


def peers(compared: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of other tools, by the script in ``benchmarks/peers`` that runs them."""
    scripts: dict[str, list[Row]] = {}
    for row in compared:
        if row.method.peer:
            scripts.setdefault(row.method.peer, []).append(row)
    return scripts
