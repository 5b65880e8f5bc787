"""What ``rate_distortion`` found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.curves import NOT_REACHED, Point, ratio_at, ratio_keeping, shares, total
from benchmarks.pages.tables import table

Json = Mapping[str, Any]

TARGETS = (0.06, 0.02, 0.006)
"""Nats per token, at which recipes are compared."""

MOST_LOST = 0.02
"""Of the questions, as a share: what a candidate that is as good as raw may lose."""

ABOUT_BOUNDS = (
    "The largest ratio at which KL stays within a bound, in nats per token, interpolated between settings. ≥: larger "
    "ratios were not measured."
)

ABOUT_TOTALS = (
    "A store's bytes with the calibration, and the ratio then, at the bytes per token measured above:"
)

STORES = (10_000, 100_000, 1_000_000)
"""Tokens."""


def body(found: Json, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """All tables, of the JSON that a run wrote. ``pictures`` are what each shows and its address."""
    parts = [_about(found), *(f"![{shows}]({address})" for shows, address in pictures)]
    parts += ["All kinds of text:", distortion(found), "Ratio and KL by kind of text:", by_kind(found)]
    parts += [ABOUT_BOUNDS, at_kl(found)]
    for family in found["compared"]:
        parts += [f"`{family}`'s bytes ÷ those of others at the same KL:", equal_kl(found, family)]
    if found["retrieval"]:
        parts += [_about_retrieval(found), retrieval(found)]
    if any(c["calibration_nbytes"] for c in found["candidates"]):
        parts += [ABOUT_TOTALS, totals(found)]
    if found["times"]:
        parts += [_about_times(found), *(times(one) for one in found["times"])]
    return "\n\n".join(parts)


def distortion(found: Json) -> str:
    rows = [
        [
            c["name"],
            f"{c['bits_per_value']:.3f}",
            f"{c['ratio']:.1f}",
            _with_interval(c["kl"], 4),
            _with_interval(c["dnll"], 4),
            _with_interval(c["top1"], 3),
        ]
        for c in found["candidates"]
    ]
    return table(["", "bits", "ratio", "KL", "ΔNLL", "top-1"], rows)


def by_kind(found: Json) -> str:
    kinds = list(found["candidates"][0]["by_kind"])
    rows = [
        [
            c["name"],
            *(f"{of['ratio']:.1f}, {of['kl']['value']:.4f}" for of in (c["by_kind"][kind] for kind in kinds)),
        ]
        for c in found["candidates"]
    ]
    return table(["", *kinds], rows)


def at_kl(found: Json) -> str:
    rows = [[family, *_reached(curve(found, family))] for family in _families(found)]
    for family in found["compared"]:
        for kind in found["candidates"][0]["by_kind"]:
            rows.append([f"{family}, {kind}", *_reached(curve(found, family, kind))])
    return table(["", *(f"≤ {target:g}" for target in TARGETS)], rows)


def equal_kl(found: Json, family: str) -> str:
    """Rows are the settings of all other recipes; ``≤`` where the curve of ``family`` ends before their KL."""
    others = [point for other in _families(found) if other != family for point in curve(found, other)]
    rows = [
        [
            share.other.name,
            f"{share.other.kl:.4f}",
            f"{share.other.ratio:.1f}",
            str(share.own or NOT_REACHED),
            str(share),
        ]
        for share in shares(curve(found, family), others)
    ]
    return table(["", "KL", "ratio", f"{family}'s ratio at this KL", f"{family}'s share of its bytes"], rows)


def retrieval(found: Json) -> str:
    rows = [
        [
            c["name"],
            f"{c['ratio']:.1f}",
            f"{c['found']} of {c['asked']}",
            _with_interval(c["score"], 2),
            _with_interval(c["lost"], 3) if n else "",
        ]
        for n, c in enumerate(found["retrieval"])
    ]
    return table(["", "ratio", "right", "share", "lost against raw"], rows)


def totals(found: Json) -> str:
    rows = []
    for c in found["candidates"]:
        if c["calibration_nbytes"]:
            of = [
                total(n, c["bytes_per_token"], c["calibration_nbytes"], found["values_per_token"])
                for n in STORES
            ]
            rows.append(
                [
                    c["name"],
                    _bytes(c["calibration_nbytes"]),
                    *(f"{_bytes(t.nbytes)}, {t.ratio:.1f}" for t in of),
                ]
            )
    return table(["", "calibration", *(f"{n:,} tokens" for n in STORES)], rows)


def times(one: Json) -> str:
    """Of one context: seconds only as ratios."""
    prefill = one["prefill_seconds"]
    rows = [
        [
            name,
            f"{own['encode_seconds'] / prefill:.2f}" if own["encode_seconds"] else "",
            f"{prefill / own['load_seconds']:.1f}",
            f"{own['ttft_speedup']['value']:.1f} ({own['ttft_speedup']['low']:.1f} to {own['ttft_speedup']['high']:.1f})"
            if own["ttft_speedup"]
            else "",
        ]
        for name, own in one["candidates"].items()
    ]
    return table([f"{one['tokens']:,} tokens", "encode ÷ prefill", "prefill ÷ decode", "TTFT"], rows)


def curve(found: Json, family: str, kind: str | None = None) -> list[Point]:
    """The settings of ``family``, over all text or one kind of it; what is not made of numbers is left out."""
    points = []
    for c in found["candidates"]:
        of = c["by_kind"][kind] if kind else c
        if c["family"] == family and of["kl"]:
            points.append(Point(c["name"], of["ratio"], of["kl"]["value"]))
    return points


def _families(found: Json) -> list[str]:
    return list(dict.fromkeys(c["family"] for c in found["candidates"]))


def _reached(points: Sequence[Point]) -> list[str]:
    return [str(ratio_at(points, target) or NOT_REACHED) for target in TARGETS]


def _about(found: Json) -> str:
    machine, settings = found["machine"], found["settings"]
    sources = ", ".join(dict.fromkeys(document["source"] for document in found["documents"]))
    return (
        f"`{found['command']}`\n\n{found['model']['name']}; {machine['cores']} cores ({machine['processor']}), "
        f"{machine['device']}, Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}. "
        f"{len(found['documents'])} documents that no calibration has seen ({sources}). The first {settings['context']:,} "
        f"tokens of each are cached, and the next {settings['tokens']} are predicted. All bytes of a file are counted. Ratio "
        "is 16 ÷ bits per value. Intervals are 95 % bootstrap intervals over documents, or over haystacks."
    )


def _about_retrieval(found: Json) -> str:
    lengths = " and ".join(f"{length:,}" for length in found["settings"]["lengths"])
    keeping = []
    for family in found["compared"]:
        points = [(c["ratio"], c["lost"]["value"]) for c in found["retrieval"] if c["family"] == family]
        kept = ratio_keeping(points, MOST_LOST)
        keeping.append(
            f"`{family}` loses no more than {MOST_LOST:g} of them up to {kept:.1f}×." if kept else ""
        )
    return " ".join(
        [
            f"Multi-key retrieval: {len(found['retrieval'][0]['haystacks'])} haystacks of {lengths} tokens, made from such "
            f"documents, hide {found['settings']['keys']} keys each. Each of the {found['retrieval'][0]['asked']} questions is "
            "asked alone.",
            *filter(None, keeping),
        ]
    )


def _about_times(found: Json) -> str:
    repeats = found["times"][0]["repeats"]
    return (
        f"Times are medians of {repeats} rounds, in each of which everything has one turn. Prefill is of the same tokens and "
        "a short question. Decoding includes reading and checking the file. TTFT is the time to the first token with a full "
        "prefill, divided by that from the artifact, with the range over the rounds."
    )


def _with_interval(estimate: Json | None, digits: int) -> str:
    if estimate is None:
        return "no number"
    value, low, high = (f"{estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _bytes(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.2f} GB"
