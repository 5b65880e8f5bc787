"""The message of each picture, in sentences of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean

from kvtool.report.numbers import Json, is_finite, plain

LIMITS = (0.01, 0.1)  # nats per token: hardly to be noticed; to be noticed in answers


def smallest(shown: Sequence[Json], most: float) -> Json | None:
    """The candidate with the fewest bits whose KL, to the end of its interval, is at most ``most``."""
    within = [c for c in shown if c["kind"] != "raw" and c["kl"] and c["kl"]["high"] <= most]
    return min(within, key=lambda c: float(c["bits_per_value"]), default=None)


def smallest_like_raw(shown: Sequence[Json]) -> Json | None:
    """The candidate with the fewest bits whose retrieval cannot be told from the raw cache's."""
    alike = [
        c for c in shown if c["kind"] != "raw" and c["retrieval"] and not c["retrieval"]["differs_from_raw"]
    ]
    return min(alike, key=lambda c: float(c["bits_per_value"]), default=None)


def rate(shown: Sequence[Json]) -> str:
    sentences = ["Left and low is better."]
    for limit in LIMITS:
        if found := smallest(shown, limit):
            sentences.append(
                f"Within a KL of {plain(limit)}, {found['name']} is the smallest: {found['bits_per_value']:.2f} bits per value."
            )
        else:
            sentences.append(f"Nothing stays within a KL of {plain(limit)}.")
    return " ".join(sentences)


def kept(shown: Sequence[Json]) -> str:
    measured = [c for c in shown if c["retrieval"] and is_finite(c["retrieval"]["retention"])]
    alike = [c for c in measured if not c["retrieval"]["differs_from_raw"]]
    worst = min(measured, key=lambda c: float(c["retrieval"]["retention"]["value"]))
    sentences = ["Right and high is better."]
    if found := smallest_like_raw(measured):
        sentences.append(
            f"Hollow marks, {len(alike)} of {len(measured)}, cannot be told from the raw cache; the smallest of them is "
            f"{found['name']}, with a ratio of {found['ratio']:.2f}."
        )
    else:
        sentences.append("Every candidate loses more than chance would explain.")
    sentences.append(
        f"{worst['name']} keeps the least, {100 * worst['retrieval']['retention']['value']:.0f}\N{NO-BREAK SPACE}%."
    )
    return " ".join(sentences)


def error(candidate: Json) -> str:
    return f"{candidate['name']}: {_side(candidate, 'keys')}; {_side(candidate, 'values')}."


def _side(candidate: Json, side: str) -> str:
    layers = candidate["relative_error"][side]
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
    before = _scores(raw)
    losses = [
        (before[place] - score, *place, before[place], score)
        for place, score in _scores(candidate).items()
        if place in before
    ]
    scores = f"{candidate['retrieval']['score']['value']:.2f}, raw {raw['retrieval']['score']['value']:.2f}"
    sentence = f"{candidate['name']} scores {scores}."
    loss, length, depth, raw_score, score = max(losses, default=(0, 0, 0, 0, 0))
    if loss > 0:
        where = f"{length:,} tokens, depth {_percent(depth)}"
        sentence += f" Most is lost at {where}: {raw_score:.2f} becomes {score:.2f}."
    return sentence


def _scores(candidate: Json) -> dict[tuple[int, float], float]:
    """Retrieval score by length and depth."""
    cells = candidate["retrieval"]["by_length_and_depth"]
    return {(cell["length"], cell["depth"]): cell["score"] for cell in cells}


def faster(candidate: Json) -> float | None:
    speedup = candidate["times"] and candidate["times"]["ttft_speedup"]
    return speedup["value"] if speedup else None


def percent(candidate: Json, name: str, prefill_seconds: float) -> float | None:
    """A candidate's time, in percent of a full prefill's."""
    seconds = candidate["times"] and candidate["times"][name]
    return 100 * seconds / prefill_seconds if seconds is not None else None


def times(shown: Sequence[Json], prefill_seconds: float) -> str:
    sentences = []
    sooner = [(ratio, c["name"]) for c in shown if (ratio := faster(c)) is not None]
    if sooner:
        (least, last), (most, first) = min(sooner), max(sooner)
        sentences.append(
            f"The first token comes {least:.1f} times ({last}) to {most:.1f} times ({first}) sooner than with a full prefill."
        )
    encode = [
        t
        for c in shown
        if c["kind"] == "recipe" and (t := percent(c, "encode_seconds", prefill_seconds)) is not None
    ]
    if encode:
        sentences.append(
            f"Encoding takes {_brief(min(encode))} to {_brief(max(encode))} of a prefill's time, once."
        )
    load = [
        t
        for c in shown
        if c["kind"] != "peer" and (t := percent(c, "load_seconds", prefill_seconds)) is not None
    ]
    if load:
        sentences.append(f"Loading takes {_brief(min(load))} to {_brief(max(load))}, each time.")
    return " ".join(sentences)
