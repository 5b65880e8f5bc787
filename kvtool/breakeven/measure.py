"""Measures what each variant of a cache takes on this machine, at each length: seconds and bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kvtool.breakeven.other_programs import OtherPrograms
from kvtool.breakeven.plan import Plan
from kvtool.breakeven.sums import Costs
from kvtool.codecs import KV
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import slice_kv
from kvtool.engines.transformers import device_of, feed, new_cache
from kvtool.errors import KvtoolError, UsageError
from kvtool.evaluation.candidates import Coded, Raw
from kvtool.measurement.bench import Bench
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model

PATIENCE = 15.0
"""Seconds of one length after which no further round is begun."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prefilled:
    """A prompt's prefix and text as the model computed them, and the seconds that one pass over both took."""

    prefix: KV | None
    text: KV
    seconds: float


@dataclass
class Rounds:
    """One variant's bytes, and its seconds, round by round."""

    nbytes: int = 0
    encode: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)


def measure(plan: Plan, on_progress: OnProgress = lambda done, total: None) -> list[list[Costs]]:
    """For each of the plan's variants, its costs at each length. ``on_progress`` gets how many tokens are done, of how many.

    Each variant is tried first at the shortest length, which warms up what compiles itself. Raises ``UsageError`` for one that
    cannot be used with the model, unless the plan leaves it out. The plan gets a note for that, and where the machine was busy.
    """
    with tempfile.TemporaryDirectory(prefix="kvtool-bench-") as folder:
        prefilled = prefill(plan.model, plan.prefix, plan.token_ids[: plan.lengths[0]])
        bench = Bench(Path(folder), plan.model, plan.prefix, prefilled.prefix)
        _try_variants(plan, bench, prefilled.text)
        del prefilled
        by_length, done = [], 0
        others = OtherPrograms()
        # The longest first: what is left then takes about as long for each token.
        for length in reversed(plan.lengths):
            by_length.append(_measure_length(plan, bench, length))
            done += length
            on_progress(done, sum(plan.lengths))
        plan.notes += others.notes()
    return [list(reversed(costs)) for costs in zip(*by_length, strict=True)]


def prefill(model: Model, prefix: Prefix, token_ids: Sequence[int]) -> Prefilled:
    """Runs the model over a prompt, as a question without a cache would have it run."""
    ids = [*prefix.token_ids, *token_ids]
    started = time.monotonic()
    cache = new_cache(model, len(ids))
    feed(model, ids, cache)
    _wait(model)
    seconds, start = time.monotonic() - started, len(prefix.token_ids)
    before = slice_kv(model, cache, 0, prefix.token_ids, 0) if start else None
    return Prefilled(before, slice_kv(model, cache, start, token_ids, start), seconds)


def _measure_length(plan: Plan, bench: Bench, length: int) -> list[Costs]:
    """The costs of each variant: the shortest times of some rounds, since what else a machine does only adds to them."""
    ids = plan.token_ids[:length]
    started = time.monotonic()
    prefilled = prefill(plan.model, plan.prefix, ids)
    prefills, rounds = [prefilled.seconds], [Rounds() for _ in plan.variants]
    writing = time.monotonic()
    with bench.holding(prefilled.text):
        write = time.monotonic() - writing
        del prefilled
        for number in range(plan.repeats):
            if number and time.monotonic() - started > PATIENCE:
                break
            if number:
                prefills.append(prefill(plan.model, plan.prefix, ids).seconds)
            for variant, taken in zip(plan.variants, rounds, strict=True):
                _take_turn(bench, variant, taken)
    return [_costs(plan, length, min(prefills), write, taken) for taken in rounds]


def _take_turn(bench: Bench, variant: Raw | Coded, taken: Rounds) -> None:
    restored = variant.restore(bench)
    started = time.monotonic()
    _make_ready(bench.model, restored.cache)
    taken.nbytes = restored.nbytes
    taken.encode.append(restored.encode_seconds)
    taken.load.append(restored.load_seconds + time.monotonic() - started)


def _costs(plan: Plan, length: int, prefill: float, write: float, taken: Rounds) -> Costs:
    transfer = plan.link.seconds(taken.nbytes) if plan.link else 0.0
    encode, load = min(taken.encode), min(taken.load)
    return Costs(length, taken.nbytes, prefill, write, encode, transfer, load)


def _try_variants(plan: Plan, bench: Bench, text: KV) -> None:
    """Restores every variant once, and leaves out, or refuses, those that cannot be used."""
    usable: list[Raw | Coded] = []
    with bench.holding(text):
        for variant in plan.variants:
            try:
                _take_turn(bench, variant, Rounds())
            except KvtoolError as error:
                # Without the raw cache there is nothing to measure.
                if variant.kind == "raw":
                    raise
                reason = f"cannot be used with {plan.model.name}: {error}"
                if not plan.leaves_out_unusable:
                    raise UsageError(variant.name, reason) from error
                plan.notes.append(f"{variant.name} is left out: it {reason}.")
            else:
                usable.append(variant)
    plan.variants = usable


def _make_ready(model: Model, cache: DocumentCache) -> None:
    """Has a loaded cache where the model computes; on a GPU, layers otherwise move there when they are first used."""
    device = device_of(model)
    if device.type == "cuda":
        for layer in cache.layers:
            layer.move(device)
        _wait(model)


def _wait(model: Model) -> None:
    """Waits for what a GPU was given to do."""
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()
