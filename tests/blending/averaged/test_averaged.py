"""prefill --neighbours: the mean of a segment's caches after other documents, beside the exact one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool.artifact.identity import segment_identity
from kvtool.artifact.scores import SPREAD
from kvtool.blending import neighbours
from kvtool.blending.neighbours import CHOICES
from kvtool.digest import digest
from kvtool.errors import ModelError
from kvtool.model.chat_template import SEPARATOR, document_tokens
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Variant
from tests.blending.averaged.conftest import THREE, after, files, touched
from tests.caches import full_prefill

# The variant beside the exact one


def test_it_lies_beside_the_exact_one(made: LocalStore, corpus: Path, lively: kvtool.Model) -> None:
    plain = LocalStore(corpus / "plain")
    kvtool.prefill(["docs", "c.txt"], model=lively, store=plain)
    for name, document in made.items():
        assert document.variants == ["raw", "averaged"]
        assert document.segments[0].variants["raw"] == plain[name].segments[0].variants["raw"]
        exact, mean = made.open(name), made.open(name, "averaged")
        mean.verify()
        assert (exact.is_exact, mean.is_exact) == (True, False)
        assert mean.is_raw
        assert torch.equal(exact.token_ids, mean.token_ids)
        assert mean.contents.geometry == exact.contents.geometry
        assert mean.contents.start == exact.contents.start
        assert exact.scores == []
        assert mean.scores == [SPREAD]
        assert len(mean.meta["made"]["behind"]) == 2
        assert mean.meta["source"] == exact.meta["source"]


def test_it_is_never_taken_for_the_exact_one(made: LocalStore, lively: kvtool.Model) -> None:
    for name in THREE:
        exact, mean = made.open(name), made.open(name, "averaged")
        assert mean.meta["identity"] != exact.meta["identity"]
        assert made.known()[exact.meta["identity"]].artifact == exact.digest
    exact, mean = made.open("c.txt"), made.open("c.txt", "averaged")
    made.remove("c.txt")
    assert made.known()[exact.meta["identity"]].artifact == exact.digest
    made.discard(Variant(exact.digest, exact.nbytes))
    assert exact.meta["identity"] not in made.known()
    # The averaged artifact that remains does not replace the exact one.
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=made)
    assert report.prefilled == ["c.txt"]
    assert report.tokens > 0
    assert made["c.txt"].variants == ["raw"]
    assert made.open("c.txt").digest == exact.digest
    assert made.known()[mean.meta["identity"]].artifact == mean.digest


def test_the_same_tokens_after_others_are_another_artifact(made: LocalStore, lively: kvtool.Model) -> None:
    exact = made.open("c.txt")
    parts = (lively.fingerprint, exact.meta["prefix"]["digest"], exact.token_ids.tolist())
    made_after = [None, *({"behind": [*neighbours]} for neighbours in ("0", "1", "01", "10"))]
    assert len({segment_identity(*parts, made=entry) for entry in made_after}) == 5


# Its keys, values and scores


def test_after_one_neighbour_it_is_what_a_prefill_there_gives(
    lively: kvtool.Model, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "NEIGHBOUR_TOKENS", 25)
    store = LocalStore(corpus / "two")
    kvtool.prefill(["docs"], model=lively, store=store, neighbours=1)
    for name, other in (("docs/a.md", "docs/b.md"), ("docs/b.md", "docs/a.md")):
        mean, exact = store.read(name, "averaged"), store.read(name)
        for n, (keys, values) in enumerate(after(lively, store, name, other, tokens=25)):
            torch.testing.assert_close(mean.layers[n].keys.double(), keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mean.layers[n].values.double(), values, atol=1e-5, rtol=1e-4)
            # At the first layer nothing depends on what stands before; from the second on much does.
            apart = (mean.layers[n].values - exact.layers[n].values).norm() / exact.layers[n].values.norm()
            assert apart < 1e-5 if n == 0 else apart > 0.05


def test_after_several_it_is_their_mean_with_their_spread(made: LocalStore, lively: kvtool.Model) -> None:
    for name in THREE:
        caches = [after(lively, made, name, other) for other in THREE if other != name]
        mean = made.open(name, "averaged")
        spread = mean.score(SPREAD)
        assert spread is not None
        # Of all layers, as the number is one for all.
        usual = torch.stack([v.square().sum((0, 2)).mean() for layers in caches for _, v in layers]).mean()
        for n, pairs in enumerate(zip(*caches, strict=True)):
            layer = mean.layer(n)
            keys, values = (torch.stack(states) for states in zip(*pairs, strict=True))
            torch.testing.assert_close(layer.keys.double(), keys.mean(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer.values.double(), values.mean(0), atol=1e-5, rtol=1e-4)
            # Of two, the standard deviation is their distance over the square root of two; kept in 8 bits.
            apart = (values[0] - values[1]).square().sum((0, 2)).div(2)
            torch.testing.assert_close(spread[n].double(), (apart / usual).sqrt(), atol=2e-3, rtol=0.07)


def test_scores_have_a_number_for_each_token(made: LocalStore) -> None:
    for name in THREE:
        mean = made.open(name, "averaged")
        n_tokens = len(mean.token_ids)
        spread = mean.score(SPREAD)
        assert spread is not None
        assert spread.shape == (3, n_tokens)
        assert spread.dtype == torch.float32
        assert not spread[0].any()
        assert spread[1:].mean() > 0.01
        assert made.open(name).score(SPREAD) is None


def test_a_single_neighbour_says_nothing_of_how_much_it_matters_which(
    lively: kvtool.Model, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(corpus / "two")
    kvtool.prefill(["docs"], model=lively, store=store, neighbours=4)
    for name in store:
        assert store.open(name, "averaged").scores == []


def test_the_most_similar_neighbours_are_taken(made: LocalStore, lively: kvtool.Model, corpus: Path) -> None:
    store = LocalStore(corpus / "one")
    kvtool.prefill(["docs", "c.txt"], model=lively, store=store, neighbours=1)
    names = sorted(THREE, key=lambda name: digest(name.encode()))
    ids = {name: store.open(name).token_ids.tolist() for name in names}
    for name in THREE:
        others = {other: ids[other] for other in names if other != name}
        first = CHOICES["similar"](ids[name], others)[0]
        layers = store.read(name, "averaged").layers
        for layer, (keys, _) in zip(layers, after(lively, store, name, first), strict=True):
            torch.testing.assert_close(layer.keys.double(), keys, atol=1e-5, rtol=1e-4)


def test_each_segment_of_a_long_document_stands_there_alone(lively: kvtool.Model, corpus: Path) -> None:
    Path("long.md").write_text("\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(3)))
    store = LocalStore(corpus / "long")
    report = kvtool.prefill(["long.md", "c.txt"], model=lively, store=store, segment_tokens=40, neighbours=2)
    assert sorted(report.averaged) == ["c.txt", "long.md"]
    assert len(store["long.md"].segments) == 3
    (prefix, own) = (part.token_ids.tolist() for part in store.parts("long.md", segment=2))
    before = [*store.open("c.txt").token_ids.tolist(), *document_tokens(lively, SEPARATOR)]
    cache = full_prefill(lively, [*prefix, *before, *own])
    for n, layer in enumerate(store.read("long.md", "averaged", 2).layers):
        values = cache.layers[n].values[0, :, len(prefix) + len(before) :]
        torch.testing.assert_close(layer.values, values, atol=1e-5, rtol=1e-4)


# Runs


def test_again_is_nothing(made: LocalStore, lively: kvtool.Model) -> None:
    before, written = files(made), touched(made)
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=made, neighbours=2)
    assert (report.prefilled, report.averaged, report.tokens) == ([], [], 0)
    assert sorted(report.unchanged) == THREE
    assert files(made) == before
    assert touched(made) == written


def test_what_was_prefilled_without_can_be_read_behind_others_later(
    made: LocalStore, lively: kvtool.Model, corpus: Path
) -> None:
    later = LocalStore(corpus / "later")
    kvtool.prefill(["docs", "c.txt"], model=lively, store=later)
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=later, neighbours=2)
    assert (report.prefilled, sorted(report.averaged)) == ([], THREE)
    assert files(later) == files(made)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_an_interrupted_run_ends_as_one_that_was_not(lively: kvtool.Model, corpus: Path, after: int) -> None:
    Path("long.md").write_text("\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(3)))
    options: dict[str, Any] = {"model": lively, "segment_tokens": 80}
    names = ["long.md", "docs"]
    whole, store = LocalStore(corpus / "whole"), LocalStore(corpus / "interrupted")
    kvtool.prefill(names, store=whole, neighbours=2, **options)
    assert len(whole["long.md"].segments) == 2
    kvtool.prefill(names, store=store, **options)
    calls = iter(range(1, 9))

    def killed(_: object) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kvtool.prefill(names, store=store, neighbours=2, on_progress=killed, **options)
    done = [name for name, document in store.items() if "averaged" in document.variants]
    report = kvtool.prefill(names, store=store, neighbours=2, **options)
    assert sorted([*done, *report.averaged]) == sorted(store)
    assert files(store) == files(whole)


def test_a_document_alone_is_reported_until_there_is_another(lively: kvtool.Model, corpus: Path) -> None:
    store = LocalStore(corpus / "few")
    report = kvtool.prefill("c.txt", model=lively, store=store, neighbours=2)
    assert (report.prefilled, report.averaged, report.without_neighbours) == (["c.txt"], [], ["c.txt"])
    assert store["c.txt"].variants == ["raw"]
    report = kvtool.prefill(["c.txt", "docs/a.md"], model=lively, store=store, neighbours=2)
    assert sorted(report.averaged) == ["c.txt", "docs/a.md"]
    assert report.without_neighbours == []


def test_what_would_not_fit_after_any_other_is_alone(tiny: kvtool.Model, corpus: Path) -> None:
    assert tiny.context == 512
    Path("long.txt").write_text("All work and no play. " * 19)
    Path("other.txt").write_text("Another one. " * 20)
    store = LocalStore(corpus / "long")
    report = kvtool.prefill(["long.txt", "other.txt"], model=tiny, store=store, neighbours=1)
    assert (report.averaged, report.without_neighbours) == (["other.txt"], ["long.txt"])


def test_other_prefixes_documents_are_no_neighbours(made: LocalStore, lively: kvtool.Model) -> None:
    Path("d.txt").write_text("Under a system prompt.\n")
    report = kvtool.prefill("d.txt", model=lively, store=made, system="Be brief.", neighbours=2)
    assert (report.averaged, report.without_neighbours) == ([], ["d.txt"])


def test_what_changed_is_read_again(made: LocalStore, lively: kvtool.Model) -> None:
    before = {name: made[name] for name in THREE}
    Path("docs/a.md").write_text("# Apples\n\nThe red apple costs four crowns.\n")
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=made, neighbours=2)
    assert report.prefilled == report.averaged == ["docs/a.md"]
    assert made["docs/a.md"].variants == ["raw", "averaged"]
    assert {name for name in THREE if made[name] == before[name]} == {"c.txt", "docs/b.md"}


def test_a_missing_one_is_made_again(made: LocalStore, lively: kvtool.Model) -> None:
    before = files(made)
    made.discard(made["c.txt"].segments[0].variants["averaged"])
    # Meanwhile a blend takes the cache of the document alone.
    assert kvtool.blend(made, ["docs/a.md", "c.txt"], lively).layout.variants == ("raw", "raw")
    report = kvtool.prefill(["docs", "c.txt"], model=lively, store=made, neighbours=2)
    assert report.averaged == ["c.txt"]
    assert files(made) == before


def test_a_model_whose_keys_cannot_be_moved_is_refused(tiny_dir: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=2, n_positions=512, eos_token_id=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(tmp_path / "gpt2")
    model = kvtool.load_model(tmp_path / "gpt2", device="cpu")
    store = LocalStore(corpus / "gpt2-store")
    with pytest.raises(ModelError, match=r"how gpt2 rotates its keys is not known.*without --neighbours"):
        kvtool.prefill(["docs"], model=model, store=store, neighbours=1)
    assert [document.variants for document in store.values()] == [["raw"]] * 2
