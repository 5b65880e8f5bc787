"""Averaged caches as artifacts: compressed, made to harm, and as commands show them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.read import Artifact
from kvtool.artifact.scores import NEED, SPREAD
from kvtool.artifact.write import Content, raw_content, serialize
from kvtool.blending.layout import lay_out
from kvtool.cli import app
from kvtool.errors import ArtifactError, StoreError, UsageError
from kvtool.model.chat_template import prefix_of
from kvtool.store.local import LocalStore
from tests.blending.averaged.conftest import THREE, files

# Compressed


def test_compressed_it_keeps_its_scores(made: LocalStore, lively: kvtool.Model) -> None:
    kvtool.compress(made, recipe="kivi", bits=4)
    report = kvtool.compress(made, recipe="kivi", bits=4, source="averaged")
    assert (report.variant, report.compressed) == ("kivi-averaged", THREE)
    assert report.raw_nbytes == sum(made.size(name, "averaged") for name in THREE)
    for name in THREE:
        assert made[name].variants == ["raw", "averaged", "kivi", "kivi-averaged"]
        mean, packed = made.open(name, "averaged"), made.open(name, "kivi-averaged")
        packed.verify()
        assert (packed.is_raw, packed.is_exact) == (False, False)
        assert packed.meta["source"]["raw"] == mean.digest
        # Stores made before the variant was renamed have the same record.
        assert made[name].segments[0].variants["kivi-averaged"].recipe["of"] == "expected"
        assert packed.meta["made"] == mean.meta["made"]
        assert packed.scores == mean.scores
        assert torch.equal(packed.score(SPREAD), mean.score(SPREAD))
        lost = packed.layer(2).values - mean.layer(2).values
        assert 0 < lost.norm() < 0.2 * mean.layer(2).values.norm()
    layout = lay_out(made, ["c.txt", "docs/a.md"], lively, variant="kivi")
    assert [segment.artifact.digest for segment in layout.segments[1:]] == [
        made["c.txt"].segments[0].variants["kivi"].artifact,
        made["docs/a.md"].segments[0].variants["kivi-averaged"].artifact,
    ]
    again = kvtool.compress(made, recipe="kivi", bits=4, source="averaged")
    assert (again.compressed, again.unchanged) == ([], THREE)


def test_of_what_is_compressed(made: LocalStore, store: LocalStore) -> None:
    with pytest.raises(UsageError, match=r"^--source kivi: expected raw or averaged"):
        kvtool.compress(made, recipe="kivi", source="kivi")
    with pytest.raises(UsageError, match=r"^--name averaged: is kept for what prefill made"):
        kvtool.compress(made, recipe="kivi", name="averaged")
    with pytest.raises(UsageError, match=r"^--name expected: is kept for what prefill made"):
        kvtool.compress(made, recipe="kivi", name="expected")
    missing = r"c.txt: has no variant 'averaged', only raw; prefill with --neighbours"
    with pytest.raises(StoreError, match=missing):
        kvtool.compress(store, "c.txt", recipe="kivi", source="averaged")
    assert kvtool.compress(made, "c.txt", recipe="kivi", source="averaged", name="x").variant == "x-averaged"
    with pytest.raises(UsageError, match=r"^--source averaged: .* measured on the raw cache"):
        kvtool.compress(made, recipe="klt", source="averaged", ratio=30)


# Made to harm


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]

HOSTILE: dict[str, Change] = {
    "a score it has not": lambda tensors, meta: tensors.pop("scores.need"),
    "a score it does not name": lambda tensors, meta: meta.update(scores=[SPREAD]),
    "names none": lambda tensors, meta: meta.pop("scores"),
    "an unknown score": lambda tensors, meta: meta.update(scores=[SPREAD, NEED, "worth"]),
    "scores in another order": lambda tensors, meta: meta.update(scores=[NEED, SPREAD]),
    "scores are a number": lambda tensors, meta: meta.update(scores=7),
    "scores are text": lambda tensors, meta: meta.update(scores="need"),
    "scores in lists": lambda tensors, meta: meta.update(scores=[[SPREAD], [NEED]]),
    "fewer tokens": lambda tensors, meta: tensors.update({"scores.need": tensors["scores.need"][:-1]}),
    "more layers": lambda tensors, meta: tensors.update(
        {"scores.spread": torch.cat([tensors["scores.spread"].float()] * 2).to(torch.float8_e4m3fn)}
    ),
    "turned round": lambda tensors, meta: tensors.update(
        {"scores.spread": tensors["scores.spread"].T.contiguous()}
    ),
    "floats": lambda tensors, meta: tensors.update({"scores.need": tensors["scores.need"].float()}),
}


@pytest.fixture
def content(made: LocalStore, lively: kvtool.Model) -> Content:
    """The content of an artifact with both scores, as earlier versions wrote it."""
    mean = made.open("c.txt", "averaged")
    spread = mean.score(SPREAD)
    scores = {SPREAD: spread, NEED: spread.mean(0)}
    entries = {"made": mean.meta["made"], "scores": scores}
    return raw_content(mean.kv(), lively, prefix_of(lively), mean.meta["source"], **entries)


def written(content: Content, folder: Path) -> Path:
    whole, chunks = serialize(content)
    path = folder / f"{whole}.safetensors"
    path.write_bytes(b"".join(chunks))
    return path


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_scores_that_do_not_fit_are_refused(content: Content, tmp_path: Path, change: Change) -> None:
    tensors, meta = dict(content.tensors), dict(content.meta)
    change(tensors, meta)
    path = written(replace(content, tensors=tensors, meta=meta), tmp_path)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_score_is_refused_when_it_is_read(made: LocalStore, lively: kvtool.Model) -> None:
    opened = made.open("c.txt", "averaged")
    data = bytearray(opened.path.read_bytes())
    data[opened.offsets["scores.spread"]] ^= 1
    opened.path.write_bytes(data)
    broken = made.open("c.txt", "averaged")
    with pytest.raises(ArtifactError, match=r"tensor scores.spread has changed"):
        broken.score(SPREAD)
    with pytest.raises(ArtifactError, match=r"tensor scores.spread has changed"):
        broken.verify()
    with pytest.raises(ArtifactError, match=r"tensor scores.spread has changed"):
        kvtool.blend(made, ["docs/a.md", "c.txt"], lively)


def test_scores_that_are_no_numbers_say_nothing(
    content: Content, made: LocalStore, lively: kvtool.Model, tmp_path: Path
) -> None:
    tensors = dict(content.tensors)
    no_numbers = torch.full_like(tensors["scores.need"].float(), torch.nan)
    tensors["scores.need"] = no_numbers.to(torch.float8_e4m3fn)
    opened = Artifact.open(written(replace(content, tensors=tensors), tmp_path))
    assert torch.equal(opened.score(NEED), torch.ones(len(opened.token_ids)))


# Commands


@pytest.fixture
def cli(corpus: Path, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("KVTOOL_MODEL", str(lively.directory))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setenv("KVTOOL_STORE", "made")

    def cli(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        return result

    return cli


def test_prefill_says_what_it_made(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    speeds: list[int] = []
    monkeypatch.setattr(
        "kvtool.model.prefill_speed.remember", lambda _, tokens, seconds: speeds.append(tokens)
    )
    first = json.loads(cli("prefill", "docs", "c.txt", "--neighbours", "2", "--json").stdout)
    store = LocalStore("made")
    tokens = sum(document.n_tokens for document in store.values())
    assert first.keys() == {
        "store", "model", "dry_run", "prefilled", "unchanged", "averaged", "without_neighbours", "problems", "tokens",
        "seconds", "replaced", "warnings", "passed_over", "collected",
    }  # fmt: skip
    assert sorted(first["averaged"]) == sorted(first["prefilled"]) == THREE
    assert first["tokens"] == 3 * tokens
    # The remembered speed is that of prefilling each document once.
    assert speeds == [tokens]
    again = json.loads(cli("prefill", "docs", "c.txt", "--neighbours", "2", "--json").stdout)
    assert (again["prefilled"], again["averaged"], again["tokens"]) == ([], [], 0)
    assert speeds == [tokens]


def test_prefill_says_so_in_words(cli: Callable[..., Any]) -> None:
    stderr = cli("prefill", "c.txt", "--neighbours", "2").stderr
    assert "c.txt: no neighbours that fit the model's context" in stderr
    stderr = cli("prefill", "docs", "c.txt", "--neighbours", "2").stderr
    assert "3 averaged over neighbours, for blending" in stderr


def test_fewer_than_no_neighbours_make_no_sense(cli: Callable[..., Any]) -> None:
    result = cli("prefill", "docs", "--neighbours", "-1", code=2)
    assert "neighbours -1: expected at least" in result.stderr
    assert not Path("made").exists()


def test_verify_and_gc_know_them(made: LocalStore, cli: Callable[..., Any]) -> None:
    kvtool.compress(made, recipe="kivi", source="averaged")
    # Three documents of three variants each, and the prefix.
    verified = json.loads(cli("verify", "--json").stdout)
    assert (verified["intact"], verified["broken"], verified["removed"]) == (10, {}, [])
    before = files(made)
    assert made.collect(dry_run=True) == []
    cli("gc")
    assert files(made) == before
    made.remove("c.txt")
    assert len(made.collect()) == 3


def test_verify_takes_a_broken_one_out_and_prefill_makes_it_again(
    made: LocalStore, cli: Callable[..., Any]
) -> None:
    path = made.open("c.txt", "averaged").path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "1 is not, 1 removed" in cli("verify", "--remove", code=4).stderr
    assert not path.exists()
    cli("prefill", "docs", "c.txt", "--neighbours", "2")
    assert path.read_bytes() == data
    cli("verify")
