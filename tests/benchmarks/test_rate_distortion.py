"""A whole run on a tiny model: texts, calibration, retrieval, times, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvtool
from benchmarks.corpora import prefilled, texts
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.sources import Source
from benchmarks.pages import tables
from benchmarks.quality import rate_distortion
from benchmarks.quality.retrieval import haystack_contexts, scores
from kvtool.codecs import Recipe, Sample
from kvtool.evaluation.candidates import Raw
from kvtool.evaluation.summary import Measured
from kvtool.measurement.contexts import Context, Prompt

WORDS = "The ship left at dawn with seven sailors.\nIts cargo was apples, and bread, and {} ropes.\n"


@pytest.fixture
def ground(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prefilled:
    """A model with room for haystacks, sources that are here, and a folder of its own."""
    directory = make_model(tmp_path / "model", max_position_embeddings=2048, initializer_range=0.3)
    words = "".join(WORDS.format(n) for n in range(60))
    kinds = {
        "prose": [Source("ship", lambda _: words)],
        "tables": [Source("rows", lambda _: words.replace(" ", ","))],
    }
    monkeypatch.setattr(texts, "HELD_OUT", kinds)
    monkeypatch.setattr(prefilled, "FOLDER", tmp_path / "prefilled")
    return Prefilled(kvtool.load_model(directory, device="cpu"))


def test_a_run_writes_its_figures_and_its_page(
    ground: Prefilled, centred: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert centred.fit
    places = ground.place(texts.held_out(ground.model, 300, 1)["prose"])
    sample = Sample(ground.store.read(places[0].document))
    calibration = centred.fit([sample]).made(model=ground.model.fingerprint, source="prose")
    file = tmp_path / "calibration.safetensors"
    file.write_bytes(calibration.to_bytes())
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n" + "\n".join(tables.markers("rate_distortion", ground.model.name)) + "\n")
    monkeypatch.setattr(rate_distortion, "COMPARED", ("centred",))
    settings = (
        "--documents 1 --context 128 --tokens 16 --lengths 500 --haystacks 2 --keys 3 --timed 128 --repeats 1"
    )
    recipes = "centred:bits=8 centred:bits=2 kivi:bits=4:group=16:recent=32 lossless"
    command = f"--model {ground.model.directory} --calibration {file} --recipes {recipes} {settings}"
    rate_distortion.main([*command.split(), "--out", str(tmp_path / "out"), "--write", str(page)])

    found = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())
    eight, two, kivi, lossless = found["candidates"]
    assert [document["kind"] for document in found["documents"]] == ["prose", "tables"]
    assert 0 <= lossless["kl"]["value"] < 1e-9 < eight["kl"]["value"] < two["kl"]["value"]
    assert eight["ratio"] < two["ratio"]
    assert eight["calibration_nbytes"] == calibration.nbytes
    assert kivi["calibration_nbytes"] == 0
    assert eight["bits_per_value"] == pytest.approx(8 * eight["bytes_per_token"] / found["values_per_token"])
    assert [one["name"] for one in found["retrieval"]] == ["raw", *recipes.split()]
    assert [one["asked"] for one in found["retrieval"]] == [6] * 5
    assert found["retrieval"][-1]["lost"]["value"] == 0
    assert found["times"][0]["tokens"] == 128
    written = page.read_text()
    assert written.startswith("# Title\n")
    assert "`centred`'s bytes ÷ those of others at the same KL:" in written
    assert (tmp_path / f"page-{ground.model.name}-kl.svg").exists()

    rate_distortion.main(["--read", str(tmp_path / "out" / "rate_distortion.json"), "--write", str(page)])
    assert page.read_text() == written


def test_a_calibration_of_another_model_is_refused(
    ground: Prefilled, centred: Recipe, tmp_path: Path
) -> None:
    assert centred.fit
    places = ground.place(texts.held_out(ground.model, 300, 1)["prose"])
    calibration = centred.fit([Sample(ground.store.read(places[0].document))]).made(model="other", source="")
    (tmp_path / "other").write_bytes(calibration.to_bytes())
    with pytest.raises(kvtool.KvtoolError, match=r"other: is of model other…, expected"):
        ground.candidates(["centred"], [tmp_path / "other"])


def test_haystacks_hide_every_key_once_in_each_kind_of_text(ground: Prefilled) -> None:
    contexts = haystack_contexts(ground.model, ground.prefix, lengths=[500], haystacks=3, number=4)
    assert [context.name for context in contexts] == [
        "keys-500/0-ship",
        "keys-500/1-rows",
        "keys-500/2-ship",
    ]
    for context in contexts:
        text = ground.model.tokenizer.decode(context.token_ids)
        assert len(context.token_ids) <= 500
        assert len(context.prompts) == 4
        for n, prompt in enumerate(context.prompts):
            (answer,) = prompt.about["answers"]
            assert text.count(answer) == 1
            assert text.index(answer) / len(text) == pytest.approx(prompt.about["depth"], abs=0.1)
            assert n / 4 - 0.1 <= prompt.about["depth"] <= (n + 1) / 4 + 0.1
            assert ground.model.tokenizer.decode(prompt.token_ids).endswith("=")
    fewer = haystack_contexts(ground.model, ground.prefix, lengths=[500], haystacks=1, number=4)
    assert fewer[0].token_ids == contexts[0].token_ids


def test_scores_are_shares_of_questions_and_losses_are_paired() -> None:
    prompts = tuple(Prompt((1,), 8, {"answers": [answer], "depth": 0.5}) for answer in ("11111", "22222"))
    said = [["11111", "22222"], ["11111.", "no 222222"]]
    records = tuple({"answers": s, "nbytes": 100 * (2 - n), "n_elements": 1000} for n, s in enumerate(said))
    measured = [Measured(Context("needles", name, (1,), prompts=prompts), records) for name in "ab"]
    raw, other = scores([Raw(), Raw("other")], measured)
    assert (raw.n_right, raw.n_asked, raw.lost.value) == (4, 4, 0)
    assert (other.n_right, other.score.value, other.lost.value) == (2, 0.5, 0.5)
    assert (raw.ratio, other.ratio) == (10, 20)
    assert other.right == ((True, False), (True, False))
