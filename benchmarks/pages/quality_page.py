"""An evaluation as docs/results/recipes.md: every recipe and peer in one table, ratios only, and what lies behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.evaluation import failed, machine, with_interval
from benchmarks.pages.frontier import KEPT, KL, frontier, points
from benchmarks.pages.overhead import overhead
from benchmarks.pages.tables import table
from kvtool.report.numbers import holds_zero

Json = Mapping[str, Any]

STORE = 1_000_000
"""Tokens of a store over which a calibration is spread."""

HEAD = """# Recipes compared

Every recipe and other tools, at two settings or more, measured on the same tensors. `make peers` makes the environments
of the other tools, and this command writes the page:

`{command}`

{machine}. Model: {model}.

{documents} documents were measured: prose, abstracts, source code, tables and dialogue. The first {context:,} tokens of
each are cached, and the {tokens} tokens after them are predicted. Retrieval asks {asked} questions over haystacks
made from such documents: {haystacks}. Each key is asked for alone. Over the raw cache the model
answers {raw} of all questions. Intervals are 95 % and come from drawing documents and haystacks again.

[Speed of the codecs](codecs.md) has the speed of the coders alone, and [klt: results](klt.md) the curves of `klt` by kind
of text.
"""

COLUMNS_HEAD = """## The table

- **bits**: per key or value, all that is stored of a document's first {context:,} tokens, headers and tables too. The raw
  cache is in 32 here; on GPUs caches have 16. **haystacks**: the same over the haystacks, which are shorter or as long. A
  window of fixed size counts more in short texts.
- **calibration**: its bytes, and the tokens that it was made from. It is made once for a model and all documents, so
  **bits** leaves it out. **with it**: the bits of a store of {store:,} tokens, calibration included.
- **KL**, **ΔNLL**: nats per token, against the raw cache. **top-1**: share of equal next tokens.
- **kept**: of the questions answered right over the raw cache, the share that still is. **≈**: cannot be told from no
  loss, which happens sooner where the interval is wide.
- **TTFT**: how many times sooner the first token comes from the artifact than with a full prefill, at {timed:,} tokens,
  with the range of {repeats} rounds. **encode**, **load**: their time ÷ that of the prefill.

Rows in *italics* are settings that kvtool adds; all others are the authors' own advice or default. Other tools are in
bold. They run in processes of their own, so their times include no reading and checking of a file. What they are given is
rounded to float16 first. kvpress prunes while it prefills, so its encoding includes a prefill. The last cached token is
fed again, and over kvpress' caches the model sees it twice.

Recipes that need a calibration got the same texts, which share no source with the documents. Rows that end in "own
documents" have the calibration that `kvtool compress` makes by itself: from up to 16,384 tokens of a store's own
documents. The measured documents were among them, as they are for a user.
"""

OVERHEAD = """## What a small model does to some methods

{model} has {layers} layers with {heads} key-value heads of {size} channels. Papers measure models of 7 or 8 billion
parameters, which have 8 heads or more, of 128 channels. What a method stores for each head and token is shared by fewer
values here, and so it costs more bits per value:

{table}

So a scale for each head costs twice what it costs in heads of 128 channels, and one over all heads {times:.1f} times. On
larger models and longer texts these methods have fewer bits at the same codes, and their KL may differ too. A basis for
each document is the exception: it grows with the heads. `klt` and `kvtc` store nothing for each head, but their calibration
grows with the square of layers × heads × channels.
"""

FRONTIER = """## The frontier

Nothing that was measured has fewer bits and a smaller KL at once than these: {kl}.

Nothing that was measured has fewer bits and keeps more answers at once than these: {kept}.

In the pictures, \\* marks a calibration from own documents, and the frontier's labels are bold. {zero}
"""

ADVICE_HEAD = """## Who advises the settings, and what differs

For each method: its settings with the source of each, then what differs from the authors' code."""

COLUMNS = (
    *(
        "",
        "bits",
        "haystacks",
        "calibration",
        "with it",
        "KL",
        "ΔNLL",
        "top-1",
        "kept",
        "TTFT",
        "encode",
        "load",
    ),
)


def markdown(result: Json, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The page, of the JSON that ``benchmarks quality`` writes. ``pictures`` are what each shows and its address."""
    raw, *candidates = result["candidates"]
    ordered = sorted(candidates, key=lambda one: -one["bits_per_value"])
    parts = [
        _head(result, raw),
        _columns(result),
        table(COLUMNS, [_row(result, one) for one in [raw, *ordered]]),
    ]
    parts += [_frontier(result), *(f"![{shows}]({address})" for shows, address in pictures)]
    parts += [_overhead(result), ADVICE_HEAD, *_methods(result)]
    parts += failed(result)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _head(result: Json, raw: Json) -> str:
    settings = result["settings"]
    return HEAD.format(
        command=result["command"],
        machine=machine(result),
        model=result["model"]["name"],
        documents=len({document["name"] for document in result["documents"]}),
        context=settings["context"],
        tokens=settings["tokens"],
        asked=raw["retrieval"]["questions"],
        haystacks=" and ".join(
            f"{some['number']} of {some['length']:,} tokens with {some['keys']} keys"
            for some in result["haystacks"]
        ),
        raw=f"{raw['retrieval']['score']['value']:.2f}",
    )


def _columns(result: Json) -> str:
    times = result["times"]
    return COLUMNS_HEAD.format(
        context=result["settings"]["context"], store=STORE, timed=times["tokens"], repeats=times["repeats"]
    )


def _row(result: Json, one: Json) -> list[str]:
    times, retrieval, about = one["times"], one["retrieval"], result["rows"].get(one["name"])
    prefill = result["times"]["prefill_seconds"]
    name = f"**{one['name']}**" if one["kind"] == "peer" else one["name"]
    calibration = about["calibration"] if about else None
    all_kept = retrieval["retention"] and not retrieval["differs_from_raw"]
    bits = one["bits_per_value"]
    return [
        f"*{name}*" if about and not about["advised"] else name,
        f"{bits:.2f}",
        f"{retrieval['bits_per_value']:.2f}",
        f"{calibration['nbytes'] / 1e6:.1f} MB, {calibration['tokens']:,}" if calibration else "",
        f"{bits + 8 * calibration['nbytes'] / (STORE * result['values_per_token']):.2f}"
        if calibration
        else "",
        with_interval(one["kl"], 4),
        ("≈ " if holds_zero(one["dnll"]) else "") + with_interval(one["dnll"], 4),
        with_interval(one["top1"], 3),
        ("≈ " if all_kept else "") + with_interval(retrieval["retention"], 2),
        with_interval(times["ttft_speedup"], 1),
        f"{times['encode_seconds'] / prefill:.2f}" if times["encode_seconds"] else "",
        f"{times['load_seconds'] / prefill:.3f}",
    ]


def _frontier(result: Json) -> str:
    kl, kept = (
        ", ".join(f"`{point.name}` ({point.bits:.2f} bits, {point.shown:.{digits}f})" for point in line)
        for line, digits in ((frontier(points(result, KL)), 4), (frontier(points(result, KEPT)), 2))
    )
    shown = {point.name for point in points(result, KL)}
    exact = [f"`{one['name']}`" for one in result["candidates"][1:] if one["name"] not in shown]
    zero = (
        f"Without a KL above rounding, and so not in the first picture: {', '.join(exact)}." if exact else ""
    )
    return FRONTIER.format(kl=kl, kept=kept, zero=zero)


def _overhead(result: Json) -> str:
    layers, heads = result["model"]["layers"], result["model"]["kv_heads"]
    size = result["values_per_token"] // (2 * layers * heads)
    return OVERHEAD.format(
        model=result["model"]["name"],
        layers=layers,
        heads=heads,
        size=size,
        table=overhead(heads, size, result["settings"]["context"]),
        times=1024 / (heads * size),
    )


def _methods(result: Json) -> list[str]:
    """A section for each method: its paper, the settings and who advises them, and what differs."""
    sections = []
    for family, differs in result["differs"].items():
        some = [one for one in result["candidates"] if one["family"] == family]
        if not some:
            continue
        paper = f" ({some[0]['paper']})" if some[0]["paper"] else ""
        settings = [
            f"- `{one['name']}`: {result['rows'][one['name']]['advice']}"
            + ("" if result["rows"][one["name"]]["advised"] else " Added by kvtool.")
            for one in some
        ]
        sections.append(
            f"### {family}\n\n{some[0]['summary']}{paper}.\n\n"
            + "\n".join(settings)
            + f"\n\nWhat differs: {differs}"
        )
    return sections
