"""What is measured of pruning: every recipe at several shares, further budgets, and combinations beside ``klt`` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.quality.compared import Row
from benchmarks.quality.method import Method
from kvtool.codecs import recipes
from kvtool.errors import UsageError

KEEPS = (0.7, 0.5, 0.3, 0.2, 0.1)
"""Shares of the tokens that stay, at which every recipe is measured."""

FURTHER_KEEPS: Mapping[str, Sequence[float]] = {"attention-matching": (0.15, 0.05), "kvzip": (0.15,)}

BUDGETS = {
    "kvzip:heads=uniform": "KVzip's scores, all heads alike.",
    "kvzip:heads=ada-kv": "KVzip's scores, the heads of a layer by Ada-KV.",
    "kvzip:heads=tokens": "KVzip's scores, the same tokens in all layers and heads.",
    "expected-attention:heads=across": "Expected Attention's scores, one budget for all layers and heads.",
    "duoattention:first=4:last=32": "Smaller windows than the authors', which are more than few tokens of a short text.",
    "attention-matching:score=kvzip": "KVzip's scores alone, least-squares values.",
    "attention-matching:heads=ada-kv": "Its own scores, Ada-KV's budgets, least-squares values.",
    "attention-matching:heads=tokens": "The same tokens in all layers and heads, least-squares values.",
}
"""Other budgets than the papers' own, and what each is."""

BUDGET_KEEPS = (0.3, 0.1)

STEPS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6)
"""Of ``klt`` alone: the curve that combinations are held against."""

COMBINED: Mapping[str, Sequence[str]] = {
    "kvzip+klt": ("step=0.02", "step=0.08"),
    "kvzip+klt:heads=tokens": ("step=0.02", "step=0.08"),
    "attention-matching+klt": ("step=0.02", "step=0.08"),
    "kvzip+kivi": ("bits=4", "bits=2"),
}
"""Each with the settings of what codes. ``klt`` codes all layers together: where heads hold different tokens it codes all of
them, so that only those with the same tokens in all heads take fewer bytes."""

COMBINED_KEEPS = (0.5, 0.3)


def rows(chosen: Iterable[str] = (), keeps: Iterable[float] = ()) -> list[Row]:
    """All rows, or those that ``chosen`` names, by a row's name, what stands before its ``keep``, or its recipe.

    ``keeps`` leaves out what keeps other shares; what keeps all tokens stays. Raises ``UsageError``.
    """
    everything = _everything()
    chosen, keeps = list(chosen), list(keeps)
    known = {part for row in everything for part in _names(row)}
    if unknown := [name for name in chosen if name not in known]:
        some = ", ".join(dict.fromkeys(row.family for row in everything))
        raise UsageError(f"--rows {unknown[0]}", "is no row", f"recipes are {some}")
    shares = {keep_of(row.name) for row in everything}
    if missing := [keep for keep in keeps if keep not in shares]:
        known_keeps = ", ".join(f"{keep:g}" for keep in sorted(shares))
        raise UsageError(f"--keep {missing[0]:g}", "is measured for no row", f"shares are {known_keeps}")
    return [
        row
        for row in everything
        if (not chosen or _names(row) & set(chosen)) and (not keeps or keep_of(row.name) in {*keeps, 1.0})
    ]


def keep_of(name: str) -> float:
    """The share of the tokens that a row keeps."""
    match = re.search(r":keep=([0-9.]+)", name)
    return float(match[1]) if match else 1.0


def without_keep(name: str) -> str:
    """A row's name without the share: what is one method at several shares."""
    return re.sub(r":keep=[0-9.]+", "", name)


def differs(recipe: str) -> str:
    """What differs from the paper: the recipe's docstring says it after "What differs."."""
    docstring = recipes()[recipe].make.__doc__ or ""
    return re.sub(r"\s+", " ", docstring.partition("What differs.")[2]).strip().replace("``", "`")


def _everything() -> list[Row]:
    pruning = [name for name, recipe in recipes().items() if recipe.prunes]
    names = {
        f"{name}:keep={keep:g}": "" for name in pruning for keep in (*KEEPS, *FURTHER_KEEPS.get(name, ()))
    }
    names |= {f"{name}:keep={keep:g}": what for name, what in BUDGETS.items() for keep in BUDGET_KEEPS}
    names |= {f"klt:step={step:g}": "" for step in STEPS}
    names |= {
        f"{name}:keep={keep:g}:{setting}": ""
        for name, settings in COMBINED.items()
        for keep in COMBINED_KEEPS
        for setting in settings
    }
    return [Row(name, name not in BUDGETS, what, Method()) for name, what in names.items()]


def _names(row: Row) -> set[str]:
    return {row.name, row.name.partition(":keep=")[0], row.family}
