"""What pruning costs, as docs/results/pruning.md: by the share that is kept, and combinations beside klt alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.against import Against, against
from benchmarks.pages.evaluation import failed, machine, with_interval
from benchmarks.pages.tables import table

Json = Mapping[str, Any]

ALONE = "klt"
"""The recipe that keeps all tokens, and that combinations are held against."""

ALL = """# Pruning: results

Recipes that prune, at several shares of the tokens. [Fewer tokens in fewer bits](pruning_combined.md) combines them with recipes
that code what stays; [pruning against kvpress](pruning_peers.md) holds the scores themselves against another tool's. Shares
without a number were not measured, nor was `kvsculpt`, which takes an hour for each share."""

COMBINED = """# Fewer tokens in fewer bits: results

Recipes that prune, combined with recipes that code what stays, beside each alone. [Pruning](pruning.md) has all recipes
that prune, over more documents."""

HEAD = """{about} This command makes the page:

`{command}`

{machine}. Model: {model}.

{documents} documents were measured: prose, abstracts, source code, tables and dialogue, which no calibration has seen. The
first {context:,} tokens of each are cached, and the {tokens} tokens after them are predicted. {retrieval}

Nothing was chosen on these texts and haystacks. One number, the weight in the score of `attention-matching`, was chosen on other
texts of the same kinds, some of them from the same sources.

Bytes and seconds are of a text of {timed:,} tokens. Intervals are 95 % and come from drawing documents and haystacks again.
"""

RETRIEVAL = """Retrieval asks {asked} questions over haystacks of {lengths} tokens: {number} of each length, with {keys} keys in
each. Each key is asked for alone. No question is known when the cache is pruned. Over the raw cache the model answers
{raw:.2f} of all questions."""

COLUMNS = (
    "",
    "tokens",
    "bits",
    "stored ÷ raw",
    "resident ÷ raw",
    "KL",
    "kept",
    "right",
    "collect s",
    "encode s",
    "load s",
)

LEGEND = """- **tokens**: the share that stays. **bits**: per key or value of the original cache, all that is stored of the
  documents. What is not coded is stored as {dtype}.
- **stored**, **resident**: bytes of the file, and of the loaded cache in memory, the shared prefix included, against those of
  the raw cache.
- **KL**: nats per token, against the raw cache. **kept**: of the questions answered right over the raw cache, the share that
  still is. **right**: the share of all questions.
- **collect**: seconds in which the model measures what the recipe needs, once for all that need the same. **encode**, **load**:
  seconds for the rest, and to load the file. All seconds are of one run on a machine that may do other work."""


def markdown(result: Json, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The page, of the JSON that ``benchmarks pruning`` writes. ``pictures`` are what each shows and its address."""
    raw, *candidates = result["candidates"]
    pruned = [one for one in candidates if one["family"] != ALONE and "+" not in one["family"]]
    parts = [_head(result, raw)]
    for title, cell in (
        ("KL by the share that stays", _kl),
        ("Answers kept by the share that stays", _kept),
    ):
        if grid := _by_share(result, pruned, cell):
            parts.append(f"## {title}\n\n{grid}")
    if best := _best(result, pruned):
        parts.append(best)
    parts += [f"![{shows}]({address})" for shows, address in pictures]
    if comparison := _against(result, candidates):
        parts.append(comparison)
    rows = [_row(result, one) for one in [raw, *candidates]]
    legend = LEGEND.format(dtype=result["model"]["dtype"])
    parts += ["## All rows\n\n" + legend, table(COLUMNS, rows), *_methods(result, candidates)]
    parts += failed(result)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _head(result: Json, raw: Json) -> str:
    haystacks = result["haystacks"]
    retrieval = (
        RETRIEVAL.format(
            asked=raw["retrieval"]["questions"],
            lengths=" and ".join(f"{length:,}" for length in haystacks["lengths"]),
            number=haystacks["number"],
            keys=haystacks["keys"],
            raw=raw["retrieval"]["score"]["value"],
        )
        if raw["retrieval"]
        else "Retrieval was not measured."
    )
    is_combined = any("+" in one["family"] for one in result["candidates"])
    return HEAD.format(
        about=COMBINED if is_combined else ALL,
        command=result["command"],
        machine=machine(result),
        model=result["model"]["name"],
        documents=len({document["name"] for document in result["documents"]}),
        context=result["settings"]["context"],
        tokens=result["settings"]["tokens"],
        retrieval=retrieval,
        timed=result["timed"]["tokens"],
    )


def _by_share(result: Json, pruned: Sequence[Json], cell: Any) -> str:
    """A row for each method, a column for each share; empty where nothing has a number."""
    about = result["rows"]
    shares = sorted({about[one["name"]]["keep"] for one in pruned}, reverse=True)
    cells: dict[str, dict[float, str]] = {}
    for one in pruned:
        row = about[one["name"]]
        cells.setdefault(row["method"], {})[row["keep"]] = cell(one)
    if not any(text for row in cells.values() for text in row.values()):
        return ""
    rows = [[f"`{name}`", *(row.get(share, "") for share in shares)] for name, row in cells.items()]
    return table(["", *(f"{share:g}" for share in shares)], rows)


def _best(result: Json, pruned: Sequence[Json]) -> str:
    """The row that keeps most answers at each share, of equal ones that with the smallest KL."""
    best: dict[float, Json] = {}
    for one in pruned:
        if _kept(one):
            keep = result["rows"][one["name"]]["keep"]
            best[keep] = min(best.get(keep, one), one, key=_loss)
    shares = [f"`{one['name']}` ({_kept(one)})" for _, one in sorted(best.items(), reverse=True)]
    return f"Most answers are kept, at each share, by {', '.join(shares)}." if shares else ""


def _loss(one: Json) -> tuple[float, float]:
    return -one["retrieval"]["retention"]["value"], one["kl"]["value"] if one["kl"] else 0.0


def _kl(one: Json) -> str:
    return f"{one['kl']['value']:.4f}" if one["kl"] else ""


def _kept(one: Json) -> str:
    kept = one["retrieval"] and one["retrieval"]["retention"]
    return f"{kept['value']:.3f}" if kept else ""


def _row(result: Json, one: Json) -> list[str]:
    costs, raw = result["costs"][one["name"]], result["costs"]["raw"]
    about, retrieval = result["rows"].get(one["name"], {"keep": 1.0}), one["retrieval"] or {}
    return [
        f"`{one['name']}`",
        f"{about['keep']:g}",
        f"{one['bits_per_value']:.3f}",
        f"{costs['stored_bytes'] / raw['stored_bytes']:.4f}",
        f"{costs['resident_bytes'] / raw['resident_bytes']:.3f}",
        with_interval(one["kl"], 4),
        with_interval(retrieval.get("retention"), 3),
        with_interval(retrieval.get("score"), 3),
        f"{costs['collect_seconds']:.1f}" if costs["collect_seconds"] else "",
        f"{costs['encode_seconds']:.1f}" if costs["encode_seconds"] else "",
        f"{costs['load_seconds']:.2f}",
    ]


AGAINST = """## Combinations against `klt`

For each combination the bits that `klt` alone needs to be as good in both: the bits of its curve at the same KL, and the
fewest measured at which it keeps as many answers. **÷ klt** is the combination's bits divided by the larger of the two;
"never" where no measured setting is as good, ≤ and ≥ where the curve of `klt` ends before this KL. **resident** is against
the raw cache, which `klt` needs whole.

`klt` codes all layers and heads of a token together. Where heads hold different tokens, nearly every token is kept by some, so
that all are coded: such a combination takes the bytes of `klt` at its step, and some for what is kept and for biases. It frees
memory, at the cost of what pruning loses. With `heads=tokens` bytes fall too, and answers are lost. An error of a value weighs
more after pruning, since one token stands for several.
"""


def _against(result: Json, candidates: Sequence[Json]) -> str:
    alone = [one for one in candidates if one["family"] == ALONE]
    combined = [one for one in candidates if "+" in one["family"]]
    if not alone or not combined:
        return ""
    costs = result["costs"]
    raw = costs["raw"]["resident_bytes"]
    rows = [
        [
            f"`{one.name}`",
            f"{one.bits:.3f}",
            f"{costs[one.name]['resident_bytes'] / raw:.3f}",
            ("≤ " if one.at_most else "") + _needed(one.at_kl),
            _needed(one.at_kept) if one.counts_answers else "",
            _share(one),
        ]
        for one in against(alone, combined)
    ]
    header = ("", "bits", "resident ÷ raw", "klt at its KL", "klt at its answers", "÷ klt")
    return AGAINST + "\n" + table(header, rows)


def _needed(bits: float | None) -> str:
    return "never" if bits is None else f"{bits:.3f}"


def _share(one: Against) -> str:
    if one.share is None:
        return "never"
    return ("≥ " if one.is_bound else "") + f"{one.share:.2f}"


def _methods(result: Json, candidates: Sequence[Json]) -> list[str]:
    """A section for each recipe: its paper, its rows with other budgets, and what differs."""
    sections: list[str] = []
    for recipe, differs in result["differs"].items():
        some = [one for one in candidates if one["family"] == recipe]
        if not some:
            continue
        about = {result["rows"][one["name"]]["method"]: result["rows"][one["name"]]["what"] for one in some}
        budgets = [f"- `{method}`: {what}" for method, what in about.items() if what]
        paper = f" ({some[0]['paper']})" if some[0]["paper"] else ""
        parts = [f"### {recipe}", f"{some[0]['summary']}{paper}.", *["\n".join(budgets)][: len(budgets)]]
        sections.append("\n\n".join([*parts, f"What differs: {differs}"]))
    return ["## The recipes", *sections] if sections else []
