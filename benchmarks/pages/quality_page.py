"""An evaluation as docs/results/recipes.md: recipes and peers in one table, ratios only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvtool.codecs import Calibration
from kvtool.report.numbers import holds_zero

HEAD = """# Recipes compared

Recipes and other tools, measured on the same tensors. `make peers` makes the environments of the other tools, and
`make bench` writes this page. {machine}. Model: {model}.

{documents} documents were measured: prose, abstracts, source code, tables and dialogue. The first {context} tokens of
each are cached, and the {tokens} tokens after them are predicted. Retrieval asks {asked} questions over {haystacks} haystacks
of {lengths} tokens of the same documents. Intervals are 95 % and come from drawing documents and haystacks again. With so
few of them, only large differences are certain.

All bytes count, headers and tables too, except those of calibrations, which are made once for a model. They were made
here from texts that share no source with the documents:

{calibrations}

The columns:

- **bits**: per key or value, all that is stored of a document's first {context} tokens. **ratio**: 16 ÷ bits. Where a
  recipe keeps a window of fixed size, both are different for haystacks.
- **KL**, **ΔNLL**: nats per token, against the raw cache. **top-1**: share of equal next tokens.
- **kept**: of what is answered right over the raw cache, the share that still is. **≈**: cannot be told from no loss,
  which happens sooner where the interval is wide.
- **TTFT**: how many times sooner the first token comes from the artifact than with a full prefill, at {timed} tokens,
  with the range of {repeats} rounds. **encode**, **load**: their time ÷ that of the prefill.

Recipes have their papers' defaults. So `kivi` has 2 bits, and a row with 4 bits is added because many people use it. A
second row of `klt` shows a finer setting.

Other tools are in bold. They run in processes of their own, so their times include no reading and checking of a file.
What they are given is rounded to float16 first. kvpress is set to drop half of all tokens, although its own default
drops none. It prunes while it prefills, the prefix too, so its encoding includes a prefill. It does not see the
question. The last cached token is fed again, and over kvpress' caches the model sees it twice.
"""

COLUMNS = ("", "bits", "ratio", "KL", "ΔNLL", "top-1", "kept", "TTFT", "encode", "load")


def markdown(evaluation: Mapping[str, Any], calibrations: Sequence[Calibration]) -> str:
    """The page. ``evaluation`` is a result of ``kvtool.evaluate``, for recipes with ``calibrations``."""
    machine, settings, candidates = (evaluation[part] for part in ("machine", "settings", "candidates"))
    raw = candidates[0]
    head = HEAD.format(
        machine=(
            f"{machine['cores']} cores ({machine['processor']}), {machine['device']}, Python {machine['python']}, "
            f"torch {machine['torch']}, transformers {machine['transformers']}, kvtool {evaluation['kvtool']}"
        ),
        model=evaluation["model"]["name"],
        documents=len({document["name"] for document in evaluation["documents"]}),
        context=settings["context"],
        tokens=settings["tokens"],
        asked=raw["retrieval"]["questions"],
        haystacks=2 * settings["haystacks"] * len(settings["lengths"]),
        lengths=", ".join(map(str, settings["lengths"])),
        calibrations="\n".join(map(_calibration, calibrations)),
        timed=evaluation["times"]["tokens"],
        repeats=evaluation["times"]["repeats"],
    )
    rows = [_row(c, evaluation["times"]["prefill_seconds"]) for c in _sorted(candidates)]
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    peers = [f"- {c['name']}: {c['summary']}" for c in candidates if c["kind"] == "peer"]
    parts = [head, "\n".join(lines), _raw_answers(raw)]
    if peers:
        parts.append("Other tools, in bold above:\n\n" + "\n".join(peers))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _calibration(calibration: Calibration) -> str:
    source: Any = calibration.facts["source"]
    return (
        f"- `{calibration.method}`: {calibration.nbytes / 1e6:.1f} MB, "
        f"from {source['tokens']:,} tokens of {source['documents']} texts"
    )


def _sorted(candidates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [candidates[0], *sorted(candidates[1:], key=lambda c: -c["bits_per_value"])]


def _row(candidate: Mapping[str, Any], prefill: float) -> list[str]:
    times, retention = candidate["times"], candidate["retrieval"]["retention"]
    name = f"**{candidate['name']}**" if candidate["kind"] == "peer" else candidate["name"]
    all_kept = retention and not candidate["retrieval"]["differs_from_raw"]
    return [
        name,
        f"{candidate['bits_per_value']:.2f}",
        f"{candidate['ratio']:.1f}",
        _with_interval(candidate["kl"], 4),
        ("≈ " if holds_zero(candidate["dnll"]) else "") + _with_interval(candidate["dnll"], 4),
        _with_interval(candidate["top1"], 3),
        ("≈ " if all_kept else "") + _with_interval(retention, 2),
        _with_interval(times["ttft_speedup"], 1),
        f"{times['encode_seconds'] / prefill:.2f}" if times["encode_seconds"] else "",
        f"{times['load_seconds'] / prefill:.3f}",
    ]


def _with_interval(estimate: Mapping[str, float] | None, digits: int) -> str:
    """Empty where there is none, as for what the raw cache keeps of itself, and for what is no number."""
    if estimate is None:
        return ""
    value, low, high = (f"{estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def _raw_answers(raw: Mapping[str, Any]) -> str:
    tasks = ", ".join(
        f"{name} {task['score']['value']:.2f}" for name, task in raw["retrieval"]["tasks"].items()
    )
    return f"Over the raw cache the model answers {raw['retrieval']['score']['value']:.2f} of all questions: {tasks}."
