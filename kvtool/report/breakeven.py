"""When a cache pays, in a terminal: a line for each variant and length, then from which length on each use saves time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvtool.report.columns import Column
from kvtool.report.numbers import Cell, Json, plain
from kvtool.report.table import rows
from kvtool.report.text import printable

NEVER = "never"


def lines(result: Json) -> list[str]:
    measured = [(variant, length) for variant in result["variants"] for length in variant["lengths"]]
    shown = [column for column in COLUMNS if column.key != "transfer" or result["link"]]
    cells = [[column.cell(length) for _, length in measured] for column in shown]
    names = [printable(variant["name"]) for variant, _ in measured]
    return [*rows(shown, cells, names), "", *map(_sentence, result["variants"])]


def explanation(result: Json) -> Iterator[str]:
    """What the figures count, for people."""
    yield "once: prefill, write the raw cache, encode; each use saves prefill - transfer - load"
    yield "uses: so many save as much as was spent once, in seconds of this machine"
    link = result["link"]
    if link:
        yield f"transfer: over {link['rate']}, {plain(link['bytes_per_second'] / 1e6)} MB a second, nothing else on it"
    else:
        yield "files are read where they were just written, so from memory; --link counts a transfer"
    for variant in result["variants"]:
        if variant["calibration_bytes"]:
            nbytes = f"{plain(variant['calibration_bytes'] / 1e6)} MB"
            yield f"{printable(variant['name'])}: beside it {nbytes} of calibration, once for all documents, not counted"


def _sentence(variant: Json) -> str:
    stored = f"{plain(variant['bytes_per_token'] / 1e3)} KB a token"
    return f"{printable(variant['name'])}: a use {variant['saves_from']['text']}; {stored}"


def _seconds(key: str) -> Callable[[Json], Cell]:
    # All with as many places, so that columns can be compared by eye.
    return lambda length: Cell(f"{length[f'{key}_seconds']:.3f}", length[f"{key}_seconds"])


def _uses(length: Json) -> Cell:
    uses = length["uses"]
    return Cell(NEVER if uses is None else f"{uses:,}", uses)


COLUMNS = (
    Column("tokens", "tokens", "Tokens of the text.", lambda o: Cell(f"{o['tokens']:,}", o["tokens"])),
    Column("size", "MB", "Megabytes of the file.", lambda o: Cell(f"{o['bytes'] / 1e6:.2f}", o["bytes"])),
    Column("prefill", "prefill", "The model runs over prefix and text.", _seconds("prefill"), "s"),
    Column("make", "once", "Prefill, write and encode, once.", _seconds("make"), "s"),
    Column("transfer", "transfer", "The file comes over the link.", _seconds("transfer"), "s"),
    Column("load", "load", "Read, check and decode the file, for each use.", _seconds("load"), "s"),
    Column("saving", "saved", "Saved by each use.", _seconds("saving"), "s"),
    Column("uses", "uses", "Uses after which the cache has saved what it took to make.", _uses),
)
