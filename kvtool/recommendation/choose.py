"""An evaluation → its frontier, and a recommended candidate for each level, as JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from kvtool.codecs.recipe_registry import is_recipe
from kvtool.formats import FORMATS
from kvtool.recommendation.frontier import Measure, Point, dominator, frontier
from kvtool.recommendation.levels import LEVELS, choice, reason
from kvtool.report.numbers import Json

FORMAT = FORMATS["recommendation"].number


def recommendation(evaluation: Json, names: Sequence[str] = (), flags: Sequence[str] = ()) -> dict[str, Any]:
    """The frontier of an evaluation, as JSON, and the choices from it.

    Commands are for the documents ``names``, none for all, and have ``flags``.
    """
    candidates = evaluation["candidates"]
    points = _points(evaluation)
    on_frontier = frontier(points)
    dominators = [dominator(point, on_frontier) for point in points]
    members = [c for c, by in zip(candidates, dominators, strict=True) if by is None]
    recommended = []
    for level in LEVELS:
        chosen = choice(level, members)
        recommended.append(
            {
                "level": level.name,
                "promise": level.promise,
                "candidate": chosen and chosen["name"],
                "reason": reason(level, chosen, members, candidates[0]),
                "command": chosen and compress_command(chosen["name"], level.name, names, flags),
            }
        )
    return {
        "format": FORMAT,
        "recommended": recommended,
        "candidates": [
            {"name": c["name"], "load_percent": load_percent(c, evaluation), "dominated_by": by and by.name}
            for c, by in zip(candidates, dominators, strict=True)
        ],
        "evaluation": dict(evaluation),
    }


def compress_command(
    text: str, level: str, names: Sequence[str] = (), flags: Sequence[str] = ()
) -> str | None:
    """The command that makes the candidate ``text``, as ``--recipes`` has it; None for what is in the store already.

    With parameters, the variant is named after the recipe and the level, so that two settings of one recipe can coexist.
    """
    name, *options = text.split(":")
    if not is_recipe(name):
        return None
    words = ["kvtool", "compress", *names, "--recipe", name]
    for option in options:
        side, equals, value = option.partition("=")
        if not equals:
            # The rest of a side's recipe, as in keys=kvquant:3.
            words[-1] += f":{option}"
        else:
            words += [f"--{side}", value] if side in ("keys", "values") else ["--set", option]
    variant = ["--name", f"{name}-{level}"] if options else []
    return shlex.join([*words, *variant, *flags])


def load_percent(candidate: Json, evaluation: Json) -> int:
    """The time to load in whole percents of a full prefill's. Finer differences are noise."""
    share: float = candidate["times"]["load_seconds"] / evaluation["times"]["prefill_seconds"]
    return round(100 * share)


def _points(evaluation: Json) -> list[Point]:
    """Bytes, KL, load time and retrieval lost of each candidate. Retrieval counts only where there is some to lose."""
    candidates = evaluation["candidates"]
    lost = [_lost(candidate) for candidate in candidates]
    return [
        Point(
            one["name"],
            (
                Measure.counted(one["bits_per_value"]),
                _kl(one),
                Measure.counted(load_percent(one, evaluation)),
                *([retrieval] if retrieval and None not in lost else []),
            ),
        )
        for one, retrieval in zip(candidates, lost, strict=True)
    ]


def _kl(candidate: Json) -> Measure:
    kl = candidate["kl"]
    # What is predicted over a broken cache may be no number: nothing is worse.
    return Measure(kl["value"], kl["low"]) if kl else Measure.counted(math.inf)


def _lost(candidate: Json) -> Measure | None:
    """The share lost of the raw cache's right answers; None where it was not measured, or where there are none."""
    retrieval = candidate["retrieval"]
    if not retrieval:
        return None
    if candidate["kind"] == "raw":
        return Measure.counted(0.0) if retrieval["score"]["value"] else None
    kept = retrieval["retention"]
    return Measure(1 - kept["value"], 1 - kept["high"]) if kept else None
