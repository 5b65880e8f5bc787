"""What ``blend`` found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.tables import table
from kvtool.measurement.statistics import Estimate, mean, ratio

Json = Mapping[str, Any]

REFERENCE = "cacheblend 15% raw"
NOTHING = "none 0% raw"
FULL = "full prefill"

HEADER = ("policy", "recomputed", "from", "sets", "KL", "÷ CacheBlend at 15 %")


def body(found: Json) -> str:
    """All tables, of the JSON that a run wrote."""
    mixed, others = found["sets"], found["one_source"]
    parts = [
        f"`{found['command']}`",
        f"{found['machine']}. Model: {found['model']}. {_size(mixed)} Intervals are 95 % bootstrap intervals over sets.",
        "### Questions, known when documents are blended",
        policies(found, mixed, asks=True),
        "### Questions, not known when documents are blended",
        policies(found, mixed, asks=False),
        "### Plain text, continued",
        plain(found, mixed),
    ]
    if others:
        kinds = sorted({name.rpartition("-")[0] for name in others})
        parts += [
            "### Another kind of text",
            f"Documents of a set follow one another in one source ({', '.join(kinds)}). {_size(others)}",
            policies(found, others, asks=True),
            policies(found, others, asks=False),
            plain(found, others),
        ]
    parts += [
        "### Bytes and times",
        "Bytes of all documents but each set's first: "
        + ", ".join(f"{variant} {nbytes / 1e6:,.1f} MB" for variant, nbytes in found["nbytes"].items())
        + ".",
        prefill(found["prefill"]),
        *(times(one) for one in found["times"]),
    ]
    return "\n\n".join(parts)


def _size(sets: Mapping[str, Json]) -> str:
    kinds = [kind for one in sets.values() for kind in one["candidates"][FULL]["kinds"]]
    tokens = sorted(one["tokens"] for one in sets.values())
    return (
        f"{len(sets)} sets of {_range([one['documents'] for one in sets.values()])} documents, {tokens[0]:,} to "
        f"{tokens[-1]:,} tokens with the text between them. There are {kinds.count('hop')} multi-hop questions and "
        f"{kinds.count('prose')} in prose."
    )


def policies(found: Json, by_name: Mapping[str, Json], *, asks: bool) -> str:
    """The candidates that know the question, or those that do not."""
    every = list(by_name.values())
    right = _plain(_estimate(every, FULL, "right"))
    rows = [["full prefill", "", "", str(len(every)), "0", "", "", "", "1", right, ""]]
    for candidate, sets in _measured(found, every):
        # CacheBlend is what the others are compared with, and none what all begin with.
        if candidate["asks"] != asks and not (asks and candidate["name"] in (REFERENCE, NOTHING)):
            continue
        name = candidate["name"]
        rows.append(
            [
                *_row(candidate, sets, "kl"),
                *(_plain(_against(sets, name, "kl", kind)) for kind in ("prose", "hop")),
                _plain(_estimate(sets, name, "same")),
                _plain(_estimate(sets, name, "right")),
                _with_interval(_lost(sets, name), 3),
            ]
        )
    return table([*HEADER, "÷, prose", "÷, multi-hop", "same answer", "multi-hop", "lost"], rows)


def plain(found: Json, by_name: Mapping[str, Json]) -> str:
    """KL over the text that follows the documents, of blends that know no question."""
    measured = _measured(found, list(by_name.values()))
    return table(
        HEADER, [_row(candidate, sets, "plain") for candidate, sets in measured if not candidate["asks"]]
    )


def _measured(found: Json, every: Sequence[Json]) -> list[tuple[Json, list[Json]]]:
    """Each candidate, and the sets that it was measured on; none that was on no set."""
    pairs = [
        (candidate, [one for one in every if candidate["name"] in one["candidates"]])
        for candidate in found["candidates"]
    ]
    return [(candidate, sets) for candidate, sets in pairs if sets]


def _row(candidate: Json, sets: Sequence[Json], what: str) -> list[str]:
    name = candidate["name"]
    return [
        candidate["method"],
        f"{candidate['share']:.0%}",
        candidate["source"],
        str(len(sets)),
        _with_interval(_estimate(sets, name, what), 4),
        _with_interval(_against(sets, name, what), 2),
    ]


def prefill(cost: Json) -> str:
    base = cost["seconds"]["prefill"]
    rows = [[name, f"{seconds / base:.2f}"] for name, seconds in cost["seconds"].items()]
    return (
        f"Time of what is prepared for blending, {cost['documents']} documents of {cost['tokens']} tokens, medians of "
        f"{cost['repeats']} interleaved rounds:\n\n" + table(["", "÷ prefill"], rows)
    )


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


def _against(sets: Sequence[Json], name: str, what: str, kind: str = "") -> Estimate:
    """KL as a share of that of the reference, over the same questions; of one ``kind``, if that is given."""
    pairs = [
        list(zip(*(_values(one, which, what, kind) for which in (name, REFERENCE)), strict=True))
        for one in sets
    ]
    found = ratio(pairs)
    assert found is not None
    return found


def _values(one: Json, name: str, what: str, kind: str) -> list[float]:
    record = one["candidates"][name]
    if not kind:
        return list(record[what])
    return [value for value, its_kind in zip(record[what], record["kinds"], strict=True) if its_kind == kind]


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
