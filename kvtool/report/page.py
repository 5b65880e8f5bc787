"""The evaluation as one HTML file: all that it shows is within it, and nothing on it can ask a network."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from math import isfinite
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kvtool.counts import counted
from kvtool.report import columns, tables, words
from kvtool.report.numbers import Json, plain
from kvtool.report.plots import require as require
from kvtool.report.text import cleaned


@dataclass(frozen=True)
class Panel:
    """The part of a section that shows one candidate."""

    index: int
    name: str
    shown: Any
    table: tables.Table | None = None


def page(evaluation: Json) -> str:
    """HTML, as UTF-8 can hold it. The same evaluation gives the same page.

    Raises ``KvtoolError`` if matplotlib is missing.
    """
    require()
    evaluation = cleaned(evaluation)
    shown = columns.candidates(evaluation)
    environment = Environment(
        loader=PackageLoader("kvtool.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(plain=plain, counted=counted)
    names = ("page.js", "colours.css", "page.css")
    script, *styles = (files(__package__).joinpath(name).read_text("utf-8") for name in names)
    return environment.get_template("page.html.j2").render(
        **{name: value for name, value in evaluation.items() if name != "blends"},
        **_sections(evaluation, shown),
        shown=shown,
        columns=columns.columns(shown),
        best=[(limit, words.smallest(shown, limit)) for limit in words.LIMITS],
        like_raw=words.smallest_like_raw(shown),
        blends=evaluation.get("blends", []),
        main=tables.of_columns("All candidates, the raw cache first, then by bits per value", shown),
        tables=tables,
        style=Markup("".join(styles)),
        script=Markup(script),
        script_digest=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _sections(evaluation: Json, shown: list[Json]) -> dict[str, Any]:
    """Pictures, with the tables of their numbers; None and empty where nothing was measured."""
    from kvtool.report.plots import maps, rate, times

    others = shown[1:]
    raw: Json = next(iter(shown), {"retrieval": None})
    numbered = list(enumerate(others, 1))
    erring = [(i, c) for i, c in numbered if c["relative_error"]]
    errors = [e for _, c in erring for side in c["relative_error"].values() for heads in side for e in heads]
    # Beyond 1 nothing is worse than storing zeros; a broken candidate must not make the others look blank.
    most = min(1.0, max(filter(isfinite, errors), default=0.0)) or 1.0
    asked = [(i, c) for i, c in numbered if raw["retrieval"] and c["retrieval"]]
    mapped = [(i, c) for i, c in asked if c["retrieval"]["by_length_and_depth"]]
    prefill = evaluation["times"] and evaluation["times"]["prefill_seconds"]
    timed = prefill and any(c["times"] for c in shown)
    answered = [(i, c) for i, c in numbered if c["answers"] and c["answers"]["examples"]]
    first = words.smallest(shown, words.LIMITS[-1]) or next(iter(others), raw)
    sections = {
        "chosen": shown.index(first) if shown else 0,
        "rate": rate.rate_distortion(shown),
        "kept": rate.retrieval_kept(shown),
        "errors": [Panel(i, c["name"], maps.error_map(c, i, most), tables.error(c)) for i, c in erring],
        "maps": [
            Panel(i, c["name"], maps.retrieval_map(raw, c, i), tables.scores(raw, c)) for i, c in mapped
        ],
        "answered": [Panel(i, c["name"], c["answers"]["examples"]) for i, c in answered],
        "time": times.time_bars(shown, prefill) if timed else None,
        "prefill": prefill,
        "retrieved": any(c["retrieval"] for c in shown),
        "asked": any(c["answers"] for c in shown),
    }
    absent = {
        "rate": "how far predictions move (KL)",
        "retrieved": "retrieval",
        "asked": "answers to questions",
        "errors": "error by layer and head",
        "time": "times",
    }
    missing = [text for part, text in absent.items() if shown and not sections[part]]
    return sections | {"missing": missing}
