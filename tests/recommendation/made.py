"""Evaluations made up by hand, with what a recommendation reads."""

from __future__ import annotations

from typing import Any


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"value": value, "low": value if low is None else low, "high": high or value, "n": 4}


def candidate(
    name: str, bits: float, kl: float, kept: float = 1.0, load: float = 0.1, faster: float = 5.0
) -> dict[str, Any]:
    raw = name == "raw"
    return {
        "name": name,
        "kind": "raw" if raw else "recipe",
        "bits_per_value": bits,
        "ratio": 16 / bits,
        "kl": estimate(kl, 0.8 * kl, 1.2 * kl),
        "retrieval": {
            "score": estimate(0.6),
            "retention": None if raw else estimate(kept, kept - 0.2, min(1.0, kept + 0.02)),
            "differs_from_raw": kept < 0.98,
        },
        "relative_error": {"keys": [[kl]], "values": [[0.0]]},
        "times": {"load_seconds": load, "ttft_speedup": estimate(faster, faster, faster)},
    }


def evaluation(*candidates: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [candidate("raw", 32, 0.0), *candidates], "times": {"prefill_seconds": 4.0}}
