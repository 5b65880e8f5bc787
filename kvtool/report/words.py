"""What the pictures say, in sentences of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean

from kvtool.report.numbers import Json, is_finite, plain

LIMITS = (0.01, 0.1)  # nats per token: hardly to be noticed; to be noticed in answers


def smallest(shown: Sequence[Json], most: float) -> Json | None:
    """The candidate with the fewest bits whose KL stays within ``most`` to the end of its interval."""
    within = [c for c in shown if c["kind"] != "raw" and c["kl"] and c["kl"]["high"] <= most]
    return min(within, key=lambda c: float(c["bits_per_value"]), default=None)


def smallest_like_raw(shown: Sequence[Json]) -> Json | None:
    """The candidate with the fewest bits whose retrieval cannot be told from the raw cache's."""
    alike = [
        c for c in shown if c["kind"] != "raw" and c["retrieval"] and not c["retrieval"]["told_from_raw"]
    ]
    return min(alike, key=lambda c: float(c["bits_per_value"]), default=None)


def rate(shown: Sequence[Json]) -> str:
    said = ["Left and low is better."]
    for limit in LIMITS:
        if found := smallest(shown, limit):
            said.append(
                f"Within a KL of {plain(limit)}, {found['name']} is the smallest: {found['bits_per_value']:.2f} bits per value."
            )
        else:
            said.append(f"Nothing stays within a KL of {plain(limit)}.")
    return " ".join(said)


def kept(shown: Sequence[Json]) -> str:
    own = [c for c in shown if c["retrieval"] and is_finite(c["retrieval"]["retention"])]
    alike = [c for c in own if not c["retrieval"]["told_from_raw"]]
    worst = min(own, key=lambda c: float(c["retrieval"]["retention"]["value"]))
    said = ["Right and high is better."]
    if found := smallest_like_raw(own):
        said.append(
            f"Hollow marks, {len(alike)} of {len(own)}, cannot be told from the raw cache; the smallest of them is "
            f"{found['name']}, with a ratio of {found['ratio']:.2f}."
        )
    else:
        said.append("Every candidate loses more than chance would explain.")
    said.append(
        f"{worst['name']} keeps the least, {100 * worst['retrieval']['retention']['value']:.0f}\N{NO-BREAK SPACE}%."
    )
    return " ".join(said)


def error(candidate: Json) -> str:
    return f"{candidate['name']}: {_side(candidate, 'keys')}; {_side(candidate, 'values')}."


def _side(candidate: Json, side: str) -> str:
    layers = candidate["error"][side]
    finite = [(e, i, j) for i, heads in enumerate(layers) for j, e in enumerate(heads) if isfinite(e)]
    if not finite:
        return f"{side} are no numbers"
    worst, layer, head = max(finite)
    mean = fmean(e for e, _, _ in finite)
    return f"{side} are off by {_percent(mean)} on average, at most by {_percent(worst)} (layer {layer}, head {head})"


def _percent(share: float) -> str:
    return _brief(100 * share)


def _brief(percent: float) -> str:
    return f"{plain(float(f'{percent:.2g}'))}\N{NO-BREAK SPACE}%"


def lost_where(raw: Json, candidate: Json) -> str:
    there = {(cell["length"], cell["depth"]): cell["score"] for cell in raw["retrieval"]["map"]}
    losses = [
        (there[place] - cell["score"], *place, there[place], cell["score"])
        for cell in candidate["retrieval"]["map"]
        if (place := (cell["length"], cell["depth"])) in there
    ]
    scores = f"{candidate['retrieval']['score']['value']:.2f}, raw {raw['retrieval']['score']['value']:.2f}"
    said = f"{candidate['name']} scores {scores}."
    loss, length, depth, before, after = max(losses, default=(0, 0, 0, 0, 0))
    if loss > 0:
        where = f"{length:,} tokens, depth {_percent(depth)}"
        said += f" Most is lost at {where}: {before:.2f} becomes {after:.2f}."
    return said


def faster(candidate: Json) -> float | None:
    ratio = candidate["times"] and candidate["times"]["ttft_ratio"]
    return ratio["value"] if ratio else None


def percent(candidate: Json, name: str, prefill_seconds: float) -> float | None:
    """A candidate's time, in percent of a full prefill's."""
    seconds = candidate["times"] and candidate["times"][name]
    return 100 * seconds / prefill_seconds if seconds is not None else None


def times(shown: Sequence[Json], prefill_seconds: float) -> str:
    said = []
    sooner = [(ratio, c["name"]) for c in shown if (ratio := faster(c)) is not None]
    if sooner:
        (least, last), (most, first) = min(sooner), max(sooner)
        said.append(
            f"The first token comes {least:.1f} times ({last}) to {most:.1f} times ({first}) sooner than with a full prefill."
        )
    encode = [
        t
        for c in shown
        if c["kind"] == "recipe" and (t := percent(c, "encode_seconds", prefill_seconds)) is not None
    ]
    if encode:
        said.append(
            f"Encoding takes {_brief(min(encode))} to {_brief(max(encode))} of a prefill's time, once."
        )
    load = [
        t
        for c in shown
        if c["kind"] != "peer" and (t := percent(c, "load_seconds", prefill_seconds)) is not None
    ]
    if load:
        said.append(f"Loading takes {_brief(min(load))} to {_brief(max(load))}, each time.")
    return " ".join(said)
