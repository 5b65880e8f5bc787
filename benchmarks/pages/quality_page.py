"""An evaluation as docs/benchmarks.md: recipes and peers in one table, ratios only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvtool.report.numbers import holds_zero

HEAD = """# Benchmarks

Recipes and other tools on the same tensors. `make peers` makes the other tools' environments, `make bench` writes this page.
{machine}. Model: {model}.

{documents} documents (Python's help texts and source code, kvtool's own pages): the first {context} tokens of each are
cached, the {tokens} behind them predicted. Retrieval: {asked} questions over {haystacks} haystacks of {lengths} tokens of
the same documents. All bytes are counted, headers and tables too. Intervals are 95 % and come from drawing documents
and haystacks again; so few of them tell large differences only.

- **bits**: per key or value, all that is stored of a document's first {context} tokens. **ratio**: 16 ÷ bits. Of haystacks,
  where a recipe keeps a window of fixed size, they differ.
- **KL**, **ΔNLL**: nats per token, against the raw cache. **top-1**: equal next tokens.
- **kept**: of what is answered over the raw cache, the share that is answered still. **≈**: cannot be told from nothing
  lost, which is easier where the interval is wide.
- **TTFT**: how many times sooner than with a full prefill the first token comes from the artifact, at {timed} tokens, with
  the range of {repeats} rounds. **encode**, **load**: their time ÷ that of the prefill.

Recipes are as their papers have them by default, so `kivi` has 2 bits; the row with 4 is added since many take it. Other
tools, in bold, run in processes of their own: their times hold no file's reading and checking, and what they are given is
rounded to float16 first. kvpress is set to drop half of all tokens (its own default drops none). It prunes while it
prefills, the prefix too, so that its encoding holds a prefill; it sees no question; and the last cached token, which is fed
again, is seen twice over its caches.
"""

COLUMNS = ("", "bits", "ratio", "KL", "ΔNLL", "top-1", "kept", "TTFT", "encode", "load")


def markdown(evaluation: Mapping[str, Any]) -> str:
    """The page. ``evaluation`` is what ``kvtool.evaluate`` gave."""
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
