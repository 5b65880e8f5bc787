"""What ``blend`` found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.tables import table
from kvtool.measurement.statistics import Estimate, mean, ratio

Json = Mapping[str, Any]

REFERENCE = "cacheblend 15% raw"
FULL = "full prefill"


def body(found: Json) -> str:
    """All tables, of the JSON that a run wrote."""
    sets = list(found["sets"].values())
    kinds = [kind for one in sets for kind in one["candidates"][FULL]["kinds"]]
    tokens = sorted(one["tokens"] for one in sets)
    parts = [
        f"`{found['command']}`",
        f"{found['machine']}. Model: {found['model']}. {len(sets)} sets of {_range([one['documents'] for one in sets])} "
        f"documents, {tokens[0]:,} to {tokens[-1]:,} tokens with the text between them. There are {kinds.count('hop')} "
        f"multi-hop questions and {kinds.count('prose')} in prose. Intervals are 95 % bootstrap intervals over sets.",
        policies(found),
        "Bytes of all documents: "
        + ", ".join(f"{variant} {nbytes / 1e6:,.1f} MB" for variant, nbytes in found["nbytes"].items())
        + ".",
        *(times(one) for one in found["times"]),
    ]
    return "\n\n".join(parts)


def policies(found: Json) -> str:
    every = list(found["sets"].values())
    rows = [
        ["full prefill", "", "", str(len(every)), "0", "", "1", _plain(_estimate(every, FULL, "right")), ""]
    ]
    for candidate in found["candidates"]:
        name = candidate["name"]
        sets = [one for one in every if name in one["candidates"]]
        rows.append(
            [
                candidate["policy"],
                f"{candidate['share']:.0%}",
                candidate["variant"],
                str(len(sets)),
                _with_interval(_estimate(sets, name, "kl"), 4),
                _with_interval(_against(sets, name), 2),
                _plain(_estimate(sets, name, "same")),
                _plain(_estimate(sets, name, "right")),
                _with_interval(_lost(sets, name), 3),
            ]
        )
    header = [
        "policy",
        "recomputed",
        "from",
        "sets",
        "KL",
        "÷ CacheBlend at 15 %",
        "same answer",
        "multi-hop",
        "lost",
    ]
    return table(header, rows)


def times(one: Json) -> str:
    full = one["seconds"][FULL]
    rows = [
        [name, f"{seconds / full:.3f}", f"{full / seconds:.1f}"] for name, seconds in one["seconds"].items()
    ]
    return (
        f"Time to the first token at {one['tokens']:,} tokens in four documents, medians of {one['repeats']} interleaved "
        "rounds:\n\n" + table(["", "÷ full prefill", "times as fast"], rows)
    )


def _estimate(sets: Sequence[Json], name: str, what: str) -> Estimate:
    found = mean([one["candidates"][name][what] for one in sets])
    assert found is not None
    return found


def _against(sets: Sequence[Json], name: str) -> Estimate:
    """KL as a share of that of the reference, over the same questions."""
    pairs = [
        list(zip(one["candidates"][name]["kl"], one["candidates"][REFERENCE]["kl"], strict=True))
        for one in sets
    ]
    found = ratio(pairs)
    assert found is not None
    return found


def _lost(sets: Sequence[Json], name: str) -> Estimate:
    """Multi-hop questions that full prefill has right, less those that the candidate has, as a share of all."""
    found = mean(
        [
            [
                a - b
                for a, b in zip(
                    one["candidates"][FULL]["right"], one["candidates"][name]["right"], strict=True
                )
            ]
            for one in sets
        ]
    )
    assert found is not None
    return found


def _with_interval(x: Estimate, digits: int) -> str:
    return f"{x.value:.{digits}f} ({x.low:.{digits}f} to {x.high:.{digits}f})"


def _plain(x: Estimate) -> str:
    return f"{x.value:.2f}"


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"
