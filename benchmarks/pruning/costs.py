"""Bytes and seconds of candidates over one text."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.evaluation.candidates import Candidate, Coded
from kvtool.evaluation.run import Runner
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context

Cost = dict[str, float]


def costs(runner: Runner, context: Context, candidates: Sequence[Candidate]) -> dict[str, Cost]:
    """Of each candidate over ``context`` its stored and resident bytes, and seconds to collect, encode and load.

    Resident bytes are those of the loaded cache's tensors, prefix included, without room for further tokens. What several
    candidates need is collected once, and counts for each. What an earlier run measured is used again, its seconds too.
    """
    identity = context.identity(runner.model, runner.prefix)
    keys = {one.name: journal.key("pruning costs", identity, one.identity) for one in candidates}
    known = {name: cost for name, key in keys.items() if (cost := journal.recall(key))}
    missing = [one for one in candidates if one.name not in known]
    if missing:
        with runner.bench() as bench, bench.holding(runner.kv(context)):
            for one in missing:
                known[one.name] = _cost(bench, one)
                journal.remember(keys[one.name], known[one.name])
    return {one.name: known[one.name] for one in candidates}


def _cost(bench: Bench, candidate: Candidate) -> Cost:
    collecting = bench.measured(candidate.pipeline)[1] if isinstance(candidate, Coded) else 0.0
    restored = candidate.restore(bench)
    restored.cache.fit(0)
    return {
        "stored_bytes": restored.nbytes,
        "resident_bytes": restored.cache.nbytes,
        "collect_seconds": collecting,
        # Restoring counts what was collected for it, once more.
        "encode_seconds": restored.encode_seconds - collecting,
        "load_seconds": restored.load_seconds,
    }
