"""Made-up evaluations, as `kvtool eval --json` prints them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

Evaluation = dict[str, Any]

# Name, family, kind, bits per value, KL.
Row = tuple[str, str, str, float, float]
CANDIDATES: tuple[Row, ...] = (
    ("lossless", "lossless", "recipe", 25.31, 0.0),
    ("kivi:bits=4", "kivi", "recipe", 5.87, 0.0042),
    ("kivi:bits=2", "kivi", "recipe", 3.89, 0.061),
    ("turboquant:bits=4", "turboquant", "recipe", 4.22, 0.0031),
    ("kvpress:knorm", "kvpress", "peer", 8.0, 0.21),
)
TASKS = ("single", "multi-key", "multi-value", "multi-query", "variables", "common-words")


def estimate(value: float, spread: float = 0.0, n: int = 6) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n}


class Maker:
    """Draws every number from one seed; a better KL goes with better everything else, as it does in earnest."""

    def __init__(self, seed: int, layers: int, heads: int, lengths: tuple[int, ...], depths: int) -> None:
        self.random = random.Random(seed)
        self.layers, self.heads, self.lengths, self.depths = layers, heads, lengths, depths

    def near(self, value: float, share: float = 0.15) -> float:
        return value * self.random.uniform(1 - share, 1 + share)

    def share(self, value: float) -> float:
        return min(1.0, max(0.0, value))

    def candidate(self, name: str, family: str, kind: str, bits: float, kl: float) -> dict[str, Any]:
        raw, kivi = kind == "raw", family == "kivi"
        return {
            "name": name,
            "kind": kind,
            "family": family,
            "summary": "min–max, keys per channel" if kivi else "",
            "paper": "2402.02750 KIVI: A Tuning-Free Asymmetric 2bit Quantization" if kivi else "",
            "bits_per_value": bits,
            "ratio": 16 / bits,
            "memory": {"stored_bytes": 1000, "resident_bytes": 4000, "bits_per_value": 32.0},
            "kl": estimate(kl, kl * self.near(0.2)),
            "dnll": estimate(kl * self.random.uniform(-0.2, 0.6), kl * 0.25),
            "top1": estimate(1 - 0.5 * kl**0.5, 0.0 if kl == 0 else 0.004 + kl * 0.05),
            "retrieval": self.retrieval(kl, raw),
            "answers": self.answers(kl),
            "relative_error": self.error(kl),
            "times": self.times(raw, kind),
            "by_document": [self.document(n, bits, kl) for n in ("docs/a.md", "docs/b.md")],
        }

    def document(self, name: str, bits: float, kl: float) -> dict[str, Any]:
        kl, dnll = self.near(kl), self.near(kl / 3)
        return {"name": name, "bits_per_value": bits, "kl": kl, "dnll": dnll, "top1": 0.98}

    def retrieval(self, kl: float, raw: bool) -> dict[str, Any]:
        kept = self.share(1 - 2.2 * kl)
        cells = []
        for length in self.lengths:
            for i in range(self.depths):
                score = self.share(self.near(0.9 - length / 8000, 0.1)) * (self.near(kept, 0.1) if kl else 1)
                place = {"length": length, "depth": i / max(1, self.depths - 1)}
                cells.append({**place, "questions": 12, "score": self.share(round(score, 3))})
        score = sum(cell["score"] for cell in cells) / len(cells)
        return {
            "score": estimate(score, 0.04, 60),
            "retention": None if raw else estimate(kept, 0.0 if kl == 0 else min(0.03, 1 - kept + 0.01), 60),
            "differs_from_raw": not raw and kl > 0.02,
            "questions": 12 * len(cells),
            "tasks": {
                task: {"score": estimate(self.share(score * (1.1 - 0.12 * i)), 0.06, 60), "questions": 30}
                for i, task in enumerate(TASKS)
            },
            "turns": [
                {"turn": n, "score": self.share(score * (1.02 - 0.03 * n)), "questions": 40}
                for n in (1, 2, 3)
            ],
            "by_length_and_depth": cells,
        }

    def answers(self, kl: float) -> dict[str, Any]:
        f1 = self.share(1 - 1.6 * kl**0.5)
        exact = self.share(f1 - 0.2 if kl else 1)
        worst = [
            {
                "document": "docs/faq.md",
                "question": f"How do I check that a store is whole, once {i} more artifacts are in it?",
                "turn": 1 + i % 2,
                "raw": "You can check that a store is whole by running kvtool verify, which reads every file.",
                "answer": "You can check a store by running kvtool show, which lists the documents.",
                "f1": round(self.share(f1 - 0.4 + 0.1 * i), 3),
            }
            for i in range(3 if kl else 0)
        ]
        by_turn = {n: self.share(f1 - 0.01 * n if kl else 1) for n in (1, 2)}
        return {
            "exact_match": estimate(exact, 0.0 if kl == 0 else 0.05, 24),
            "f1": estimate(f1, 0.0 if kl == 0 else 0.03, 24),
            "questions": 24,
            "turns": [
                {"turn": n, "f1": value, "exact_match": exact, "questions": 12}
                for n, value in by_turn.items()
            ],
            "examples": worst,
        }

    def error(self, kl: float) -> dict[str, Any]:
        size = 0.0 if kl == 0 else 0.7 * kl**0.4

        def side(times: float) -> list[list[float]]:
            return [
                [round(self.near(size * times * (0.7 + 0.6 * layer / max(1, self.layers)), 0.35), 5)]
                + [round(self.near(size * times, 0.3), 5) for _ in range(self.heads - 1)]
                for layer in range(self.layers)
            ]

        return {"keys": side(1.0), "values": side(0.8)}

    def times(self, raw: bool, kind: str) -> dict[str, Any]:
        ratio = self.near(17 if raw else 11, 0.3)
        return {
            "encode_seconds": None if raw or kind == "peer" else self.near(0.9, 0.8),
            "load_seconds": self.near(0.1 if raw else 0.22, 0.4),
            "ttft_seconds": 6.0 / ratio,
            "ttft_speedup": estimate(ratio, ratio * 0.06, 5),
            "peak_bytes": int(self.near(6e7)),
        }


def evaluation(
    *,
    candidates: tuple[Row, ...] = CANDIDATES,
    layers: int = 4,
    heads: int = 2,
    lengths: tuple[int, ...] = (512, 1024),
    depths: int = 3,
    seed: int = 0,
    **changed: Any,
) -> Evaluation:
    """An evaluation of the raw cache and of ``candidates``, whole in every part; ``changed`` are its own fields."""
    maker = Maker(seed, layers, heads, lengths, depths)
    summaries = [maker.candidate(*row) for row in (("raw", "raw", "raw", 32.0, 0.0), *candidates)]
    checks = [
        {"candidate": c["name"], "metric": "kl", **c["kl"], "limit": 0.05}
        | {"passed": c["kl"]["value"] <= 0.05, "significant": not c["kl"]["low"] <= 0.05 <= c["kl"]["high"]}
        for c in summaries[1:]
    ]
    machine = {"system": "Linux 6.1", "processor": "x86_64", "cores": 2, "device": "cpu", "torch": "2.13.0"}
    model = {"name": "SmolLM2-135M-Instruct", "dtype": "float32", "layers": layers, "kv_heads": heads}
    whole: Evaluation = {
        "format": 1,
        "command": "kvtool eval docs --recipes lossless,kivi:bits=4,kivi:bits=2 --max-kl 0.05 --html report.html",
        "created": "2026-11-22T07:00:00+00:00",
        "kvtool": "0.1.0",
        "machine": machine,
        "model": {**model, "fingerprint": "5b2f" * 16},
        "settings": {"context": 1024, "tokens": 256, "lengths": list(lengths), "seed": seed, "repeats": 5},
        "documents": [
            {"name": "docs/a.md", "segment": 0, "cached_tokens": 1024, "predicted_tokens": 257},
            {"name": "docs/b.md", "segment": 0, "cached_tokens": 812, "predicted_tokens": 257},
        ],
        "candidates": summaries,
        "times": {"document": "docs/a.md", "tokens": 1024, "repeats": 5, "prefill_seconds": 6.0},
        "gate": checks,
        "notes": ["kvpress:knorm: encode time was not measured, since it prunes while it prefills."],
    }
    return whole | changed


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Evaluation]:
    return evaluation
