"""A whole run on a tiny model: rows that fail are named, an interrupted run goes on, and the page is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvtool
from benchmarks.corpora import prefilled, texts
from benchmarks.corpora.sources import Source
from benchmarks.quality import compared, quality
from benchmarks.quality.method import OWN, Method
from kvtool.codecs import Recipe
from kvtool.evaluation.candidates import Coded
from kvtool.measurement.bench import Bench

WORDS = "The ship left at dawn with seven sailors.\nIts cargo was apples, and bread, and {} ropes.\n"

METHODS = {
    "centred": Method(
        {"centred:bits=4": "Advised."}, {f"centred:bits=4{OWN}": "Of own documents."}, "Nothing."
    ),
    "kivi": Method({"kivi:bits=4": "Advised.", "kivi:bits=99": "No such width.", "kivi:bits=2": "Fails."}),
    "transformers-hqq": Method(
        {"transformers-hqq:bits=4": "Advised."}, differs="Nothing.", peer="quantized_cache"
    ),
}


def test_a_run_names_what_failed_and_writes_the_page(
    make_model: Any, centred: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_model(tmp_path / "model", max_position_embeddings=2048, initializer_range=0.3)
    model = kvtool.load_model(directory, device="cpu")
    words = "".join(WORDS.format(n) for n in range(60))
    source = [Source("ship", lambda _: words)]
    monkeypatch.setattr(texts, "HELD_OUT", {"prose": source})
    monkeypatch.setattr(texts, "SEEN", source)
    monkeypatch.setattr(prefilled, "FOLDER", tmp_path / "prefilled")
    monkeypatch.setattr(quality, "CALIBRATION_TOKENS", 100)
    monkeypatch.setattr(quality, "TOKENS", 200)
    monkeypatch.setattr(quality.kvtool, "load_model", lambda: model)
    monkeypatch.setattr(compared, "METHODS", METHODS)
    restored: list[str] = []
    restore = Coded.restore

    def restore_all_but_one(self: Coded, bench: Bench) -> Any:
        restored.append(self.name)
        if self.name == "kivi:bits=2" and len(restored) > 8:
            raise RuntimeError("out of luck\nand more")
        return restore(self, bench)

    monkeypatch.setattr(Coded, "restore", restore_all_but_one)
    settings = f"--context 96 --tokens 16 --lengths 400 500 --haystacks 2 1 --keys 3 4 --repeats 1 --peers {tmp_path}"
    page = tmp_path / "recipes.md"
    command = [*settings.split(), "--out", str(tmp_path / "out"), "--write", str(page)]
    quality.main(command)

    result = json.loads((tmp_path / "out" / "quality.json").read_text())
    own = f"centred:bits=4{OWN}"
    assert [one["name"] for one in result["candidates"]] == ["raw", "centred:bits=4", own, "kivi:bits=4"]
    assert result["failed"].keys() == {"kivi:bits=99", "kivi:bits=2", "transformers-hqq:bits=4"}
    assert result["failed"]["kivi:bits=2"] == "out of luck"
    assert "make peers" in result["failed"]["transformers-hqq:bits=4"]
    assert result["candidates"][0]["retrieval"]["questions"] == 2 * 3 + 4
    assert result["rows"]["kivi:bits=4"]["calibration"] is None
    assert result["rows"]["centred:bits=4"]["calibration"]["documents"] > 1
    assert result["rows"][own]["calibration"]["nbytes"] > 0
    written = page.read_text()
    assert "- `kivi:bits=2`: out of luck" in written
    assert (tmp_path / "recipes-kl.svg").exists()

    restored.clear()
    quality.main([*command, "--rows", "kivi:bits=4"])
    # Once to try it, and once for times: what was measured is kept.
    assert restored == ["kivi:bits=4"] * 2
