"""A recommendation in a terminal: the table of candidates, those on the frontier marked, then a choice for each level."""

from __future__ import annotations

from kvtool.report.columns import BY_KEY, Column, candidates
from kvtool.report.numbers import Cell, Json
from kvtool.report.table import legend, rows
from kvtool.report.text import printable

SHOWN = ("bits", "ratio", "kl", "kept", "faster")
MARK = "*"


def lines(recommendation: Json) -> list[str]:
    about = {candidate["name"]: candidate for candidate in recommendation["candidates"]}
    shown = candidates(recommendation["evaluation"])
    load = Column(
        "load",
        "load",
        "Time to load in percent of a full prefill's.",
        lambda candidate: _percent(about[candidate["name"]]["load_percent"]),
        unit="%",
        better="less",
    )
    columns = [*(BY_KEY[key] for key in SHOWN), load]
    names = [f"{' ' if about[c['name']]['dominated_by'] else MARK} {printable(c['name'])}" for c in shown]
    cells = [[column.cell(candidate) for candidate in shown] for column in columns]
    marks = f"{MARK}: on the frontier of bits, KL, kept and load · load: time in percent of a full prefill's"
    table = [*rows(columns, cells, names), *legend(cells), marks, ""]
    return [*table, *(line for choice in recommendation["recommended"] for line in _choice(choice))]


def _choice(choice: Json) -> list[str]:
    chosen = choice["candidate"]
    if chosen is None:
        return [f"{choice['level']}: nothing; {choice['reason']}"]
    line = f"{choice['level']}: {printable(chosen)}, {choice['reason']}"
    return [line, f"  {choice['command']}"] if choice["command"] else [line]


def _percent(value: int) -> Cell:
    return Cell(str(value), value)
