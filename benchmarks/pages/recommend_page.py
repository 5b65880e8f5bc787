"""Recommendations as docs/results/recommendations.md: each choice on what was seen, and on what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.tables import table
from kvtool.recommendation.levels import LEVELS, Level, is_exact
from kvtool.report.numbers import estimated

Json = Mapping[str, Any]

HEAD = """# Recommendations checked

`kvtool recommend` on corpora of different kinds: {kinds}. Each has two halves: the recommendation is made from one, and
what it recommends is measured on the other, with other haystacks. The figures were made by

```sh
{command}
```

{machine}. Model: {model}. {documents} documents in each half; the first {context} tokens of each are cached and the
{tokens} after them predicted. Retrieval asks {questions} questions over haystacks of {lengths} tokens. With so little
text, intervals are wide.

The levels promise:

{levels}

**held**: whether the promise holds on the unseen half. *within chance* means that the figure misses its limit, but that
the limit lies inside the figure's 95 % interval. **KL** is in nats per token. **kept** is the share of what is answered right
over the raw cache that still is.

{calibrations}
"""

COLUMNS = ("corpus", "level", "recipe", "bits", "KL, seen", "kept", "KL, unseen", "kept", "held")


def markdown(measured: Json) -> str:
    corpora = measured["corpora"]
    evaluation = corpora[0]["recommendation"]["evaluation"]
    settings, raw = evaluation["settings"], evaluation["candidates"][0]
    head = HEAD.format(
        kinds=", ".join(corpus["kind"] for corpus in corpora),
        command=measured["command"],
        machine=measured["machine"],
        model=measured["model"],
        documents=settings["documents"],
        context=f"{settings['context']:,}",
        tokens=settings["tokens"],
        questions=raw["retrieval"]["questions"],
        lengths=", ".join(map(str, settings["lengths"])),
        levels="\n".join(f"- **{level.name}**: {level.promise}" for level in LEVELS),
        calibrations=_calibrations(corpora[0]["calibrations"]),
    )
    rows = [row for corpus in corpora for row in _rows(corpus)]
    parts = [head, table(COLUMNS, rows), *map(_frontier, corpora)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def held(level: Level, candidate: Json) -> str:
    """Whether the figures of ``candidate`` keep the level's promise: yes, no, or within chance."""
    if level.exact:
        return "yes" if is_exact(candidate) else "no"
    kl, kept = candidate["kl"], candidate["retrieval"] and candidate["retrieval"]["retention"]
    if kl is None or kl["low"] > level.max_kl or (kept and kept["high"] < level.min_kept):
        return "no"
    certain = kl["value"] <= level.max_kl and (kept is None or kept["value"] >= level.min_kept)
    return "yes" if certain else "within chance"


def _rows(corpus: Json) -> list[Sequence[str]]:
    recommendation = corpus["recommendation"]
    seen = {c["name"]: c for c in recommendation["evaluation"]["candidates"]}
    unseen = {c["name"]: c for c in corpus["unseen"]["candidates"]}
    rows: list[Sequence[str]] = []
    for level, one in zip(LEVELS, recommendation["recommended"], strict=True):
        name = one["candidate"]
        if name is None:
            rows.append((corpus["kind"], level.name, "none", "", "", "", "", "", ""))
            continue
        before, after = seen[name], unseen[name]
        figures = (_kl(before), _kept(before), _kl(after), _kept(after))
        bits = f"{before['bits_per_value']:.2f}"
        rows.append((corpus["kind"], level.name, f"`{name}`", bits, *figures, held(level, after)))
    return rows


def _kl(candidate: Json) -> str:
    cell = estimated(candidate["kl"])
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _kept(candidate: Json) -> str:
    retrieval = candidate["retrieval"]
    return f"{retrieval['retention']['value']:.2f}" if retrieval and retrieval["retention"] else ""


def _frontier(corpus: Json) -> str:
    """All candidates of the half that was seen, and what dominates those that are off the frontier."""
    recommendation = corpus["recommendation"]
    summaries = {c["name"]: c for c in recommendation["evaluation"]["candidates"]}
    rows = [
        (
            f"`{one['name']}`",
            f"{summaries[one['name']]['bits_per_value']:.2f}",
            _kl(summaries[one["name"]]),
            _kept(summaries[one["name"]]),
            f"{one['load_percent']} %",
            f"`{one['dominated_by']}`" if one["dominated_by"] else "",
        )
        for one in recommendation["candidates"]
    ]
    heading = f"## {corpus['kind'].capitalize()}\n\nFrom {', '.join(corpus['sources'])}. Load: in percent of a prefill's time."
    return heading + "\n\n" + table(("", "bits", "KL", "kept", "load", "dominated by"), rows)


def _calibrations(calibrations: Sequence[Json]) -> str:
    if not calibrations:
        return "No recipe that needs a calibration took part."
    made = "; ".join(map(_calibration, calibrations))
    return f"Calibrations were made from texts that share no source with any corpus: {made}."


def _calibration(calibration: Json) -> str:
    source = calibration["source"]
    megabytes = f"{calibration['bytes'] / 1e6:.1f} MB"
    return f"`{calibration['method']}` {megabytes}, from {source['tokens']:,} tokens of {source['documents']} texts"
