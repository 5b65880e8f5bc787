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
    asked = [c for c in shown if c["kind"] != "raw" and c["retrieval"]]
    alike = [c for c in asked if not c["retrieval"]["differs_from_raw"]]
    return min(alike, key=lambda c: float(c["bits_per_value"]), default=None)


def rate(shown: Sequence[Json]) -> str:
    sentences = ["Left and low is better."]
    for limit in LIMITS:
        if best := smallest(shown, limit):
            bits = f"{best['bits_per_value']:.2f} bits per value"
            sentences.append(f"Within a KL of {plain(limit)}, {best['name']} is the smallest: {bits}.")
        else:
            sentences.append(f"Nothing stays within a KL of {plain(limit)}.")
    return " ".join(sentences)


def kept(shown: Sequence[Json]) -> str:
    measured = [c for c in shown if c["retrieval"] and is_finite(c["retrieval"]["retention"])]
    alike = [c for c in measured if not c["retrieval"]["differs_from_raw"]]
    worst = min(measured, key=lambda c: float(c["retrieval"]["retention"]["value"]))
    if best := smallest_like_raw(measured):
        marks = (
            f"Hollow marks, {len(alike)} of {len(measured)}, cannot be told from the raw cache; the smallest of them is "
            f"{best['name']}, with a ratio of {best['ratio']:.2f}."
        )
    else:
        marks = "Every candidate loses more than chance would explain."
    least = f"{100 * worst['retrieval']['retention']['value']:.0f}\N{NO-BREAK SPACE}%"
    return f"Right and high is better. {marks} {worst['name']} keeps the least, {least}."


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
    return f"{plain(float(f'{100 * share:.2g}'))}\N{NO-BREAK SPACE}%"


def lost_where(raw: Json, candidate: Json) -> str:
    before = scores(raw)
    losses = [
        (before[place] - score, *place, before[place], score)
        for place, score in scores(candidate).items()
        if place in before
    ]
    total, raw_total = (c["retrieval"]["score"]["value"] for c in (candidate, raw))
    sentence = f"{candidate['name']} scores {total:.2f}, raw {raw_total:.2f}."
    loss, length, depth, raw_score, score = max(losses, default=(0, 0, 0, 0, 0))
    if loss > 0:
        where = f"{length:,} tokens, depth {_percent(depth)}"
        sentence += f" Most is lost at {where}: {raw_score:.2f} becomes {score:.2f}."
    return sentence


def scores(candidate: Json) -> dict[tuple[int, float], float]:
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
    def span(name: str, *kinds: str) -> str | None:
        """The shortest and the longest of these times."""
        shares = [percent(c, name, prefill_seconds) for c in shown if c["kind"] in kinds]
        known = [share / 100 for share in shares if share is not None]
        return f"{_percent(min(known))} to {_percent(max(known))}" if known else None

    sentences = []
    sooner = [(ratio, c["name"]) for c in shown if (ratio := faster(c)) is not None]
    if sooner:
        (least, last), (most, first) = min(sooner), max(sooner)
        ratios = f"{least:.1f} times ({last}) to {most:.1f} times ({first})"
        sentences.append(f"The first token comes {ratios} sooner than with a full prefill.")
    if encoding := span("encode_seconds", "recipe"):
        sentences.append(f"Encoding takes {encoding} of a prefill's time, once.")
    if loading := span("load_seconds", "raw", "recipe"):
        sentences.append(f"Loading takes {loading}, each time.")
    return " ".join(sentences)
