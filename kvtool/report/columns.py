"""The columns of the table, the same in the terminal and on the page, and the meaning of each number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtool.report.numbers import Cell, Json, estimated, holds_zero, hundredths


@dataclass(frozen=True)
class Column:
    """A column of the table. ``cell`` reads a candidate; ``meaning`` explains the number. ``better`` is more or less."""

    key: str
    title: str
    meaning: str
    cell: Callable[[Json], Cell]
    unit: str = ""
    better: str = "more"

    @property
    def heading(self) -> str:
        return f"{self.title} {self.unit}".strip()


def candidates(evaluation: Json) -> list[Json]:
    """The raw cache first, then by bits per value; none where only blends were measured."""
    raw, others = evaluation["candidates"][:1], evaluation["candidates"][1:]
    return [*raw, *sorted(others, key=lambda candidate: float(candidate["bits_per_value"]))]


def columns(shown: Sequence[Json]) -> list[Column]:
    """The columns in which at least one of the candidates has a number."""
    return [column for column in COLUMNS if any(column.cell(candidate) for candidate in shown)]


def _kept(candidate: Json) -> Cell:
    retrieval = candidate["retrieval"]
    kept = retrieval and retrieval["retention"]
    return estimated(kept, scale=100, significant=not retrieval or retrieval["differs_from_raw"])


def _memory(candidate: Json) -> Cell:
    # Evaluations of earlier versions did not measure it.
    memory = candidate.get("memory")
    return hundredths(memory["bits_per_value"]) if memory else estimated(None)


def faster(candidate: Json) -> Cell:
    """How many times sooner the first token comes. Without a spread, since a few rounds give no 95 % interval."""
    speedup = candidate["times"] and candidate["times"]["ttft_speedup"]
    return Cell(f"{speedup['value']:.1f}", speedup["value"]) if speedup else estimated(None)


COLUMNS = (
    Column(
        "bits",
        "bits",
        "Bits per value: 8 times all bytes stored, divided by the number of key and value elements before "
        "compression. All bytes count: codes, tables, scales, tokens kept whole, indices, headers.",
        lambda candidate: hundredths(candidate["bits_per_value"]),
        better="less",
    ),
    Column(
        "ratio",
        "ratio",
        "16 divided by the bits per value: how many times smaller than a cache of 16-bit numbers. "
        "A raw cache in 32 bits has the ratio 0.5.",
        lambda candidate: hundredths(candidate["ratio"]),
    ),
    Column(
        "memory",
        "memory",
        "Bits per value of the cache once it is loaded: 8 times the bytes of its tensors, divided by the number of key and "
        "value elements before compression, the prefix counted in both. Only recipes that drop tokens lower it: all others "
        "are decoded to full size.",
        _memory,
        better="less",
    ),
    Column(
        "kl",
        "KL",
        "How far the predicted next tokens move: the Kullback–Leibler divergence of the prediction over the "
        "compressed cache from the one over the raw cache, in nats per token, the same text being fed to both. "
        "0 means the same predictions.",
        lambda candidate: estimated(candidate["kl"]),
        better="less",
    ),
    Column(
        "dnll",
        "dNLL",
        "How much worse the real text is predicted: the difference in mean negative log likelihood, in nats per "
        "token. Below 0 the compressed cache predicted it better, which happens by chance.",
        lambda candidate: estimated(candidate["dnll"], significant=not holds_zero(candidate["dnll"])),
        better="less",
    ),
    Column(
        "top1",
        "top-1",
        "Share of tokens for which both caches make the same token the likeliest.",
        lambda candidate: estimated(candidate["top1"], scale=100),
        unit="%",
    ),
    Column(
        "retrieval",
        "retrieval",
        "Needle tasks in the manner of RULER: facts are hidden in a long context at several depths and asked for; "
        "the score is the mean over all questions, 1 where every fact comes back word for word.",
        lambda candidate: estimated(candidate["retrieval"] and candidate["retrieval"]["score"]),
    ),
    Column(
        "kept",
        "kept",
        "Of the retrieval questions that the raw cache answers, the share still answered. What the model cannot do "
        "with the raw cache is not held against compression.",
        _kept,
        unit="%",
    ),
    Column(
        "f1",
        "answers F1",
        "Greedy answers to your own questions, held against the answer over the raw cache: the harmonic mean of the "
        "shares of words that agree. 1 means the same words. It says how much answers change, not whether they are right.",
        lambda candidate: estimated(candidate["answers"] and candidate["answers"]["f1"]),
    ),
    Column(
        "faster",
        "TTFT ×",
        "Time to first token: how many times sooner it comes with this cache, opened from its file, than with a full "
        "prefill of the same tokens. Medians of interleaved repeats in one run on one machine.",
        faster,
    ),
)

BY_KEY = {column.key: column for column in COLUMNS}
