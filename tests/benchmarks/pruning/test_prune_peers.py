"""Scores and masks against a peer made for the purpose, on a tiny model's tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from benchmarks.peers import environments
from benchmarks.pruning import prune_peers
from benchmarks.pruning.peer_tensors import Measured, measure
from kvtool.codecs.prune.select import Select

PEER = """
import sys

import torch
from safetensors.torch import load_file, save_file

given, out = sys.argv[1:3]
keep = float(sys.argv[sys.argv.index("--keep") + 1])
tensors, results = load_file(given), {}
if keep > 0.9:
    sys.exit("out of cheese")
for layer in ("0000", "0001"):
    keys = tensors[f"layers.{layer}.keys"]
    norms = -keys.norm(dim=-1)
    best = norms.argsort(descending=True)[:, : round(keep * norms.shape[1])]
    mask = torch.zeros_like(norms, dtype=torch.bool).scatter(1, best, True)
    for name in NAMES:
        results[f"scores.{name}.{layer}"] = norms + (name != "knorm")
        results[f"kept.{name}.{layer}"] = mask.clone()
    results[f"kept.think.{layer}"] = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool)
save_file(results, out, metadata={"kvpress": "1.2"})
"""
TOKENS = 40


@pytest.fixture(scope="module")
def measured(tiny: kvtool.Model) -> Measured:
    return measure(tiny, list(range(TOKENS)))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(f"NAMES = {[press.name for press in prune_peers.PRESSES]}\n{PEER}")
    return path


def test_the_tensors_are_those_of_the_model_and_give_its_weights(measured: Measured) -> None:
    given = measured.given
    request = int(given["request"])
    for n, layer in enumerate(measured.layers):
        assert torch.equal(given[f"layers.{n:04d}.keys"], layer.keys)
        assert given[f"layers.{n:04d}.queries"].shape == (4, TOKENS, 8)
        assert given[f"layers.{n:04d}.replay_queries"].shape == (4, request + TOKENS, 8)
        assert given[f"layers.{n:04d}.replay_keys"].shape == (2, request + TOKENS, 8)
    # Queries before RoPE, turned at their places, give the weights that kvtool collected.
    angles = torch.arange(TOKENS)[:, None] * given["inv_freq"]
    cos, sin = (f(torch.cat([angles, angles], 1)) for f in (torch.cos, torch.sin))
    queries = given["layers.0001.queries"]
    first, second = queries.chunk(2, -1)
    turned = queries * cos + torch.cat([-second, first], -1) * sin
    scores = turned @ measured.layers[1].keys.repeat_interleave(2, 0).mT / 8**0.5
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    received = weights.sum(1).view(2, 2, TOKENS).mean(1)
    assert torch.allclose(measured.inputs[1]["received"], received, atol=1e-5)


def test_a_peer_that_agrees_differs_by_nothing_and_another_by_what_it_does(
    measured: Measured, script: Path
) -> None:
    theirs, version = prune_peers.run_peer(measured, Path(sys.executable), 0.3, script)
    assert version == "1.2"
    rows = {row.press.name: row for row in prune_peers.compare(measured, theirs, 0.3)}
    assert len(rows) == len(prune_peers.PRESSES)
    knorm = rows["knorm"]
    assert knorm.scores is not None
    assert knorm.scores < 1e-6
    assert knorm.alike == 1
    keydiff = rows["keydiff"]
    assert keydiff.scores is not None
    assert keydiff.scores > 0.1
    assert keydiff.alike < 1
    assert rows["think"].scores is None
    # The peer keeps all channels, 5 of 8 are kept here.
    assert rows["think"].alike == pytest.approx(5 / 8)


def test_tokens_without_a_finite_score_do_not_count() -> None:
    ours = [torch.tensor([[1.0, 2.0, torch.inf]])]
    assert prune_peers.largest_difference(ours, [torch.tensor([[1.0, 1.5, 7.0]])]) == 0.25


def test_what_all_heads_keep_is_compared_with_each() -> None:
    ours, theirs = [torch.tensor([[True, False, True]])], [torch.tensor([[True] * 3, [False, False, True]])]
    assert prune_peers.kept_alike(ours, theirs) == 3 / 4


def test_a_peer_that_fails_is_named_with_its_last_words(measured: Measured, script: Path) -> None:
    with pytest.raises(kvtool.KvtoolError, match=r"exit code 1\n(?s:.)*out of cheese"):
        prune_peers.run_peer(measured, Path(sys.executable), 0.95, script)
    with pytest.raises(kvtool.KvtoolError, match="make peers"):
        prune_peers.run_peer(measured, script.parent / "python", 0.3, script)


def test_the_page_says_what_differs(
    tiny: kvtool.Model, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_peers.kvtool, "load_model", lambda: tiny)
    monkeypatch.setattr(prune_peers, "SCRIPT", script)
    python = tmp_path / prune_peers.ENVIRONMENT / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    page = tmp_path / "page.md"
    prune_peers.main(["--tokens", "40", "--peers", str(tmp_path), "--write", str(page)])
    written = page.read_text()
    assert "2 layers over 40 tokens" in written
    assert "kvpress 1.2" in written
    for press in prune_peers.PRESSES:
        assert f"- {press.press}: {press.reason}" in written


def test_every_press_is_in_the_peers_script() -> None:
    script = prune_peers.SCRIPT.read_text()
    assert "import kvtool" not in script
    assert prune_peers.ENVIRONMENT in environments.names()
    for press in prune_peers.PRESSES:
        assert press.press.split("Press")[0] + "Press" in script
        assert f'"{press.name}"' in script or f'"kept.{press.name}"' in script


def test_at_least_eight_methods_are_compared() -> None:
    presses: list[Any] = [press for press in prune_peers.PRESSES if press.select is not None]
    assert len({press.press.split("Press")[0] for press in prune_peers.PRESSES}) >= 8
    assert all(isinstance(press.select(0.3), Select) for press in presses)
