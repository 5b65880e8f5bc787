"""The page's tables, as rows of cells: all numbers of each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvtool.report import columns, words
from kvtool.report.numbers import Cell, Json, estimated, hundredths, plain
from kvtool.report.table import measured, metric


@dataclass(frozen=True)
class Table:
    """A table. ``rows`` begin with their subject; their other cells have the headings ``head``."""

    caption: str
    first: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]

    @property
    def spreads(self) -> list[int]:
        """Characters of the longest spread in each column, so that all of a column's begin at one place."""
        columns = range(len(self.head))
        return [max((len(cells[n].spread) for _, cells in self.rows), default=0) for n in columns]


def of_columns(caption: str, shown: Sequence[Json], *keys: str) -> Table:
    """The columns ``keys`` for the candidates that have a number in the last of them; without ``keys``, all."""
    chosen = [columns.BY_KEY[key] for key in keys] or columns.columns(shown)
    rows = [(c["name"], [column.cell(c) for column in chosen]) for c in shown]
    kept = [row for row in rows if not keys or row[1][-1]]
    return Table(caption, "candidate", [column.heading for column in chosen], kept)


def gate(checks: Iterable[Json]) -> Table:
    rows = []
    for check in checks:
        result = "✓ passed" if check["passed"] else "✕ failed"
        if check["value"] is not None and not check["significant"]:
            result += ", but too near the limit to be told from it"
        value = Cell(measured(check), check["value"])
        rows.append((check["candidate"], [Cell(metric(check)), value, number(check["limit"]), Cell(result)]))
    head = ["metric", "measured", "limit", "result"]
    return Table("Every limit, and what was measured", "candidate", head, rows)


def blends(measured: Sequence[Json]) -> Table:
    """Blends against a full prefill; a metric that none of them has is left out."""
    chosen = [columns.BY_KEY[key] for key in ("kl", "dnll", "top1", "f1")]
    kept = [column for column in chosen if any(column.cell(blend) for blend in measured)]
    rows = [(blend["name"], [column.cell(blend) for column in kept]) for blend in measured]
    return Table("Blends, against a full prefill of both documents", "blend", [c.heading for c in kept], rows)


def by_document(shown: Sequence[Json]) -> Table:
    """KL of each candidate on each document; a document of several segments has a column for each."""
    kl = [(c["name"], {d["name"]: d["kl"] for d in c["by_document"]}) for c in shown if c["by_document"]]
    names = list(dict.fromkeys(name for _, by_document in kl for name in by_document))
    rows = [(candidate, [number(by_document.get(name)) for name in names]) for candidate, by_document in kl]
    return Table("KL on each document, nats per token", "candidate", names, rows)


def tasks(shown: Sequence[Json]) -> Table:
    measured = [(c["name"], c["retrieval"]["tasks"]) for c in shown if c["retrieval"]]
    names = list(dict.fromkeys(name for _, by_task in measured for name in by_task))
    rows = [
        (candidate, [estimated(by_task[n]["score"]) if n in by_task else number(None) for n in names])
        for candidate, by_task in measured
    ]
    return Table("Score in each kind of task", "candidate", names, rows)


def turns(shown: Sequence[Json]) -> Table:
    """Retrieval at each turn."""
    head, rows = _turns(shown, "retrieval", "score")
    return Table("Retrieval score, by turn", "candidate", head, rows)


def answers(shown: Sequence[Json]) -> Table:
    """Agreement with the raw cache's answers, over all and at each turn."""
    head, rows = _turns(shown, "answers", "f1")
    overall = [[estimated(c["answers"][key]) for key in ("exact_match", "f1")] for c in shown if c["answers"]]
    return Table(
        "Agreement with the answers over the raw cache",
        "candidate",
        ["exact match", "F1", *(f"F1, {turn}" for turn in head)],
        [(name, [*whole, *cells]) for (name, cells), whole in zip(rows, overall, strict=True)],
    )


def _turns(shown: Sequence[Json], part: str, metric: str) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    measured = [(c["name"], {t["turn"]: t[metric] for t in c[part]["turns"]}) for c in shown if c[part]]
    numbers = sorted({turn for _, by_turn in measured for turn in by_turn})
    head = ["asked alone" if n == 1 else f"turn {n}" for n in numbers]
    return head, [(name, [score(by_turn.get(n)) for n in numbers]) for name, by_turn in measured]


def error(candidate: Json) -> Table:
    """Layers by heads; a layer may have fewer heads than another."""
    errors = candidate["relative_error"]
    places = [(side, n) for side in ("keys", "values") for n in range(max(map(len, errors[side])))]
    rows = []
    for layer in range(len(errors["keys"])):
        heads = {side: errors[side][layer] for side in ("keys", "values")}
        cells = [Cell(plain(heads[side][n]) if n < len(heads[side]) else "") for side, n in places]
        rows.append((str(layer), cells))
    head = [f"{side} {n}" for side, n in places]
    return Table("Error of keys and values, by head", "layer", head, rows)


def scores(raw: Json, candidate: Json) -> Table:
    """Scores of the raw cache and the candidate at each length and depth."""
    before = words.scores(raw)
    rows = []
    for cell in candidate["retrieval"]["by_length_and_depth"]:
        length, depth = cell["length"], cell["depth"]
        cells = [score(before.get((length, depth))), score(cell["score"]), number(cell["questions"])]
        rows.append((f"{length:,} tokens, depth {100 * depth:.0f} %", cells))
    return Table("Score by length and depth", "place", ["raw", "candidate", "questions"], rows)


def times(shown: Sequence[Json], prefill_seconds: float) -> Table:
    rows = []
    for c in shown:
        if c["times"]:
            share = [words.percent(c, name, prefill_seconds) for name in ("encode_seconds", "load_seconds")]
            peak = c["times"]["peak_bytes"]
            cells = [columns.faster(c), *map(number, share)]
            rows.append((c["name"], [*cells, number(None if peak is None else peak / 1e6)]))
    head = ["first token, × sooner", "encoding, % of prefill", "loading, % of prefill"]
    memory = "peak memory of loading, MB"
    return Table("Times relative to a full prefill, and memory", "candidate", [*head, memory], rows)


def number(value: float | None) -> Cell:
    return Cell(plain(value), value)


def score(value: float | None) -> Cell:
    return number(None) if value is None else hundredths(value)


def documents(evaluation: Json) -> Table:
    rows = []
    for document in evaluation["documents"]:
        name, segment = document["name"], document["segment"]
        counts = [document["cached_tokens"], document["predicted_tokens"]]
        cells = [Cell(f"{count:,}", count) for count in counts]
        rows.append((f"{name}, segment {segment}" if segment else name, cells))
    return Table("Documents", "document", ["tokens cached", "tokens predicted"], rows)
