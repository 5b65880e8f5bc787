"""Non-uniform levels: where k-means puts them, and that they are worth having."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.quantize.codebook import BINS, Codebook, integers, lloyd, matched
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.weighted_codebook import WeightedCodebook
from kvtool.codecs.spec import Spec
from kvtool.codecs.stage import Stage


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(stage: Stage, x: torch.Tensor) -> float:
    spec = Spec.of(x)
    return float((stage.decode(stage.encode({"x": x}, spec), spec)["x"] - x).norm() / x.norm())


def histogram(entries: np.ndarray) -> np.ndarray:
    return np.histogram(entries, BINS, (-1, 1))[0]


def test_k_means_finds_clusters() -> None:
    generator = np.random.default_rng(2)
    centers = np.array([-0.9, -0.2, 0.1, 0.75])
    entries = (centers[:, None] + 0.01 * generator.standard_normal((4, 1000))).ravel()
    assert np.abs(lloyd(histogram(entries), 4) - centers).max() < 2e-3


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_k_means_finds_the_best_levels_of_the_normal_distribution(bits: int) -> None:
    # Max, 1960: the least mean square errors of 2, 4, 8 and 16 levels, of standard deviation 1.
    best = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
    entries = np.random.default_rng(3).standard_normal(400_000) / 6
    levels = lloyd(histogram(entries), 1 << bits)
    nearest = np.abs(entries[:, None] - levels).min(1)
    assert abs(np.mean((6 * nearest) ** 2) / best - 1) < 0.02


@pytest.mark.parametrize("entries", [[], [0.3], [-1.0, 1.0], [0.1] * 50 + [0.2]])
def test_few_entries_are_each_a_level(entries: Any) -> None:
    counts = histogram(np.array(entries))
    levels = lloyd(counts, 16)
    assert (np.diff(levels) >= 0).all()
    assert all(np.abs(levels - entry).min() <= 1 / BINS for entry in entries)
    assert np.isfinite(matched(counts, levels)).all()


def test_matched_levels_keep_mean_and_deviation() -> None:
    entries = np.random.default_rng(4).gamma(2, 0.08, 50_000) - 0.9
    counts = histogram(entries)
    levels = lloyd(counts, 4)
    codes = np.abs(entries[:, None] - levels).argmin(1)
    assert levels[codes].std() < 0.97 * entries.std()
    moved = matched(counts, levels)[codes]
    assert abs(moved.mean() - entries.mean()) < 1e-3
    assert abs(moved.std() / entries.std() - 1) < 1e-3


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_it_errs_less_than_equal_steps_and_less_with_more_bits(axis: Any) -> None:
    x = normal(2, 128, 128) * normal(2, 1, 128, seed=2).exp() + 5 * normal(2, 128, 1, seed=3)
    errors = [error(Codebook(bits=bits, axis=axis), x) for bits in range(1, 9)]
    assert all(fewer > 1.5 * more for fewer, more in pairwise(errors)), errors
    for bits in (2, 3, 4):
        assert errors[bits - 1] < 0.9 * error(Group(bits=bits, group=128, axis=axis), x)


def test_every_entry_has_the_code_of_its_nearest_level() -> None:
    x = normal(1, 60, 5)
    payload = Codebook(bits=3).encode({"x": x}, Spec.of(x))
    mapped = (x - payload["zero"].float()) / payload["scale"].float()
    distances = (mapped.unsqueeze(-1) - payload["levels"].float()).abs()
    chosen = distances.gather(-1, payload["codes"].long().unsqueeze(-1)).squeeze(-1)
    # Levels are rounded to float16 after the codes are chosen.
    assert (chosen - distances.amin(-1)).max() < 1e-3


def test_layers_have_levels_of_their_own() -> None:
    x = torch.stack([normal(2, 90, 8), normal(2, 90, 8, seed=2).exp()])
    payload = Codebook().encode({"x": x}, Spec.of(x))
    assert payload["levels"].shape == (2, 8)
    for index in range(2):
        alone = Codebook().encode({"x": x[index]}, Spec.of(x[index]))
        assert all(torch.equal(alone[name], payload[name][index]) for name in alone)


def test_codes_that_no_level_has_are_decoded_to_something() -> None:
    x = normal(1, 20, 4)
    payload = Codebook(bits=2).encode({"x": x}, Spec.of(x))
    hostile = {**payload, "codes": torch.full_like(payload["codes"], 255)}
    assert Codebook(bits=2).decode(hostile, Spec.of(x))["x"].isfinite().all()


def weighted(fisher: torch.Tensor, **options: Any) -> WeightedCodebook:
    return WeightedCodebook(calibration=Calibration("kvquant", {}, {"0000.keys": fisher}), **options)


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_weights_lower_the_error_that_they_count(axis: Any) -> None:
    x = normal(2, 200, 16) ** 3 * normal(2, 1, 16, seed=2).exp()
    fisher = normal(32, seed=5).mul(2).exp()
    cost = fisher.view(2, 1, 16).sqrt()
    costs = []
    for stage in (Codebook(bits=2, axis=axis), weighted(fisher, bits=2, axis=axis)):
        back = stage.decode(stage.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"]
        costs.append(float(((back - x) * cost).norm()))
    assert costs[1] < 0.97 * costs[0], costs


@pytest.mark.parametrize("fisher", [torch.zeros(10), torch.full((10,), 1e-30), torch.full((10,), 1e30)])
def test_equal_weights_of_any_size_are_usable(fisher: torch.Tensor) -> None:
    x = normal(2, 60, 5)
    x /= x.abs().amax(1, keepdim=True)
    x[:, :2] = torch.tensor([[-1.0], [1.0]])
    payloads = [stage.encode({"x": x}, Spec.of(x)) for stage in (Codebook(), weighted(fisher))]
    assert all(torch.equal(payloads[0][name], payloads[1][name]) for name in payloads[0])


def test_the_running_totals_of_weights_are_exact() -> None:
    counts = integers(np.random.default_rng(6).random(BINS) ** 20)
    assert int((counts * np.arange(BINS)).sum()) == sum(int(n) * place for place, n in enumerate(counts))
