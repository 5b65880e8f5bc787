"""What was measured and what follows from it, as JSON that the reports are made from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from kvtool.breakeven.plan import Plan
from kvtool.breakeven.sums import Costs, Threshold, threshold
from kvtool.evaluation.candidates import Coded, Raw
from kvtool.evaluation.result import machine
from kvtool.formats import FORMATS

FORMAT = FORMATS["break-even"].number


def result(plan: Plan, measured: Sequence[Sequence[Costs]]) -> dict[str, Any]:
    """``measured`` has the costs of each of the plan's variants, by length."""
    link = plan.link
    return {
        "format": FORMAT,
        "kvtool": version("kvtool"),
        "machine": machine(plan.model),
        "model": {
            "name": plan.model.name,
            "fingerprint": plan.model.fingerprint,
            "dtype": plan.model.dtype_name,
        },
        "link": link and {"rate": link.rate, "bytes_per_second": link.bytes_per_second},
        "variants": [
            _variant(variant, costs) for variant, costs in zip(plan.variants, measured, strict=True)
        ],
        "notes": list(plan.notes),
    }


def _variant(variant: Raw | Coded, costs: Sequence[Costs]) -> dict[str, Any]:
    """One variant. ``bytes_per_token`` are of the longest text: short ones are more header."""
    calibrations = variant.pipeline.calibrations if isinstance(variant, Coded) else ()
    pays = threshold([(one.tokens, one.saving) for one in costs])
    return {
        "name": variant.name,
        "bytes_per_token": costs[-1].nbytes / costs[-1].tokens,
        "calibration_bytes": sum(one.nbytes for one in calibrations),
        "saves_from": _threshold(pays),
        "lengths": [_length(one) for one in costs],
    }


def _threshold(pays: Threshold) -> dict[str, Any]:
    return {"tokens": pays.tokens, "at_most": pays.at_most, "text": pays.describe()}


def _length(costs: Costs) -> dict[str, Any]:
    return {
        "tokens": costs.tokens,
        "bytes": costs.nbytes,
        "prefill_seconds": costs.prefill,
        "write_seconds": costs.write,
        "encode_seconds": costs.encode,
        "make_seconds": costs.make,
        "transfer_seconds": costs.transfer,
        "load_seconds": costs.load,
        "saving_seconds": costs.saving,
        "uses": costs.uses,
    }
