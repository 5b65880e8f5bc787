"""What is measured of pruning, and whole runs on a tiny model: costs are kept, the page is written, memory is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import kvtool
from benchmarks.corpora import prefilled, texts
from benchmarks.corpora.sources import Source
from benchmarks.pruning import pruned_speed, pruning
from benchmarks.pruning.rows import COMBINED, FURTHER_KEEPS, KEEPS, differs, keep_of, rows, without_keep
from kvtool.codecs import recipes
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.pipeline_options import parameters_of
from kvtool.errors import UsageError
from kvtool.evaluation.candidates import Coded
from kvtool.measurement.bench import Bench

WORDS = "The ship left at dawn with seven sailors.\nIts cargo was apples, and bread, and {} ropes.\n"


@pytest.mark.parametrize("recipe", sorted(name for name, recipe in recipes().items() if recipe.prunes))
def test_every_recipe_that_prunes_is_measured_at_every_share(recipe: str) -> None:
    shares = {
        keep_of(row.name) for row in rows([recipe]) if row.setting == f"{recipe}:keep={keep_of(row.name):g}"
    }
    assert shares == {*KEEPS, *FURTHER_KEEPS.get(recipe, ())}
    assert differs(recipe).endswith(".")


def test_every_row_is_a_setting_that_its_recipe_has() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    for row in rows():
        parameters = parameters_of(row.setting.split(":")[1:], row.name, "")
        find_recipe(row.family).check(parameters)
    for name in COMBINED:
        assert rows([name])


def test_rows_are_chosen_by_name_by_recipe_and_by_share() -> None:
    assert [row.name for row in rows(["kvzip:keep=0.3"])] == ["kvzip:keep=0.3"]
    assert {row.name for row in rows(["kvzip:heads=ada-kv"], [0.1])} == {"kvzip:heads=ada-kv:keep=0.1"}
    # What keeps all tokens is compared at any share.
    assert {keep_of(row.name) for row in rows([], [0.2])} == {0.2, 1.0}
    assert without_keep("kvzip+klt:keep=0.3:step=0.02") == "kvzip+klt:step=0.02"
    with pytest.raises(UsageError, match="--rows nothing: is no row"):
        rows(["nothing"])
    with pytest.raises(UsageError, match=r"--keep 0.25: is measured for no row"):
        rows([], [0.25])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> kvtool.Model:
    directory = make_model(
        tmp_path_factory.mktemp("models") / "model", max_position_embeddings=2048, initializer_range=0.3
    )
    return kvtool.load_model(directory, device="cpu")


def test_a_run_writes_the_page_and_goes_on_where_it_was(
    model: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = [Source("ship", lambda _: "".join(WORDS.format(n) for n in range(60)))]
    monkeypatch.setattr(texts, "HELD_OUT", {"prose": source})
    monkeypatch.setattr(prefilled, "FOLDER", tmp_path / "prefilled")
    monkeypatch.setattr(pruning.kvtool, "load_model", lambda: model)
    restored: list[str] = []
    restore = Coded.restore

    def counted(self: Coded, bench: Bench) -> object:
        restored.append(self.name)
        return restore(self, bench)

    monkeypatch.setattr(Coded, "restore", counted)
    page = tmp_path / "pruning.md"
    settings = "--documents 1 --context 96 --tokens 16 --lengths 400 --haystacks 1 --keys 3 --timed 120"
    chosen = "--rows keydiff snapkv:keep=0.5 ada-kv --keep 0.3 0.5"
    command = [*settings.split(), *chosen.split(), "--out", str(tmp_path / "out"), "--write", str(page)]
    pruning.main(command)

    result = json.loads((tmp_path / "out" / "pruning.json").read_text())
    names = [one["name"] for one in result["candidates"]]
    assert names == [
        *("raw", "ada-kv:keep=0.5", "ada-kv:keep=0.3", "keydiff:keep=0.5", "keydiff:keep=0.3"),
        "snapkv:keep=0.5",
    ]
    assert result["failed"] == {}
    costs = result["costs"]
    assert set(costs) == set(names)
    # Tokens of the prefix stay.
    shares = {name: costs[name]["resident_bytes"] / costs["raw"]["resident_bytes"] for name in names}
    assert 0.3 < shares["ada-kv:keep=0.3"] < shares["ada-kv:keep=0.5"] < 0.7
    assert costs["snapkv:keep=0.5"]["collect_seconds"] > 0
    assert costs["keydiff:keep=0.5"]["collect_seconds"] == 0
    assert "| `keydiff` |" in page.read_text()
    assert (tmp_path / "pruning-kl.svg").exists()

    restored.clear()
    pruning.main([*command[:-2], "--rows", "keydiff", "--keep", "0.3", "--haystacks", "0"])
    # Once to try it: what was measured is kept, and its costs.
    assert restored == ["keydiff:keep=0.3"]


def test_speed_and_memory_are_against_the_full_cache(
    model: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pruned_speed.kvtool, "load_model", lambda: model)
    page, some = tmp_path / "speed.md", pruned_speed.ROWS[-1:]
    settings = ["--tokens", "300", "--repeats", "1", "--decoded", "2"]
    pruned_speed.main([*settings, "--rows", *some, "--write", str(page)])
    written = page.read_text()
    assert capsys.readouterr().out.strip() == written.strip()
    lines = [line.split(" | ") for line in written.splitlines() if line.startswith("| 3")]
    assert [line[1] for line in lines] == ["full", *(f"`{row}`" for row in some)]
    assert [float(line[2]) for line in lines] == [1.0, pytest.approx(0.35, abs=0.1)]
