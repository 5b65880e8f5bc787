"""The evaluation in a terminal: a line for each candidate, then the gate."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report import columns
from kvtool.report.numbers import ABSENT, Cell, Json, estimated, plain
from kvtool.report.text import printable

GAP = "  "
# A limit on retrieval is on what is kept of the raw cache's.
METRICS = {
    "kl": "KL",
    "dnll": "dNLL",
    "top1": "top-1",
    "retrieval": "retrieval kept",
    "answers": "answers F1",
}


def table(evaluation: Json) -> str:
    """Aligned plain text: the raw cache first, the others by bits per value, then a line for each of the gate's limits."""
    shown = columns.candidates(evaluation)
    chosen = columns.columns(shown)
    cells = [[column.cell(candidate) for candidate in shown] for column in chosen]
    names = [printable(candidate["name"]) for candidate in shown]
    return "\n".join([*rows(chosen, cells, names), *legend(cells), *gate(evaluation["gate"] or ())])


def rows(shown: Sequence[columns.Column], cells: Sequence[Sequence[Cell]], names: Sequence[str]) -> list[str]:
    """Aligned lines: the headings, then one for each of ``names``. ``cells`` has a list for each column."""
    blocks = [_left(["candidate", *names])]
    blocks += [_block(column.heading, below) for column, below in zip(shown, cells, strict=True)]
    return [GAP.join(row).rstrip() for row in zip(*blocks, strict=True)]


def gate(checks: Sequence[Json]) -> list[str]:
    """One line for each limit: whether it was kept, and whether the difference to it is significant."""
    lines = []
    for check in checks:
        subject = f"gate {'passed' if check['passed'] else 'FAILED'}: {printable(check['candidate'])}"
        doubt = "" if check["significant"] or check["value"] is None else "; cannot be told from the limit"
        lines.append(f"{subject}: {metric(check)} {measured(check)}, limit {plain(check['limit'])}{doubt}")
    return lines


def metric(check: Json) -> str:
    return METRICS.get(check["metric"], printable(check["metric"]))


def measured(check: Json) -> str:
    """A gate's number, with its interval where it has one."""
    if check["value"] is None:
        return "has no number"
    if check["low"] is None or check["high"] is None:
        return plain(check["value"])
    cell = estimated(check)
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _block(heading: str, cells: Sequence[Cell]) -> list[str]:
    """One column; the numbers end at one place, and the spreads begin at the next."""
    numbers = [cell.text if cell.significant else f"≈{cell.text}" for cell in cells]
    wide, spread = max(map(len, numbers)), _left([cell.spread for cell in cells])
    body = [f"{n:>{wide}}{' ' if spread[0] else ''}{s}" for n, s in zip(numbers, spread, strict=True)]
    width = max(len(heading), len(body[0]))
    return [
        f"{heading:>{wide}}".ljust(width),
        *(line.ljust(width) if spread[0] else line.rjust(width) for line in body),
    ]


def _left(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def legend(cells: Sequence[Sequence[Cell]]) -> list[str]:
    """What the marks among ``cells`` mean, after an empty line."""
    every = [cell for column in cells for cell in column]
    marks = {
        "±: to the farther end of the 95 % interval": any(cell.interval for cell in every),
        "±?: one piece alone, no interval": any(cell.spread == "±?" for cell in every),
        "≈: cannot be told from the raw cache": not all(cell.significant for cell in every if cell),
        f"{ABSENT}: not measured": not all(every),
    }
    shown = [text for text, is_used in marks.items() if is_used]
    return ["", " · ".join(shown)] if shown else []
