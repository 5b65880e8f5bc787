"""kvtool compress: its JSON, its flags, and when it runs a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.nn.functional import cross_entropy

from kvtool.commands.compress import render
from kvtool.compression.plan import Sizes
from kvtool.compression.report import Report
from kvtool.errors import FAILED, PARTLY, USAGE
from kvtool.store.local import LocalStore
from tests.commands.conftest import THREE, Cli, error_of, typed


def test_compress(cli: Cli, store: LocalStore) -> None:
    report = json.loads(cli("compress", "--recipe", "kivi", "--bits", "4", "--json").stdout)
    assert typed(report) == {
        "variant": "str",
        "dry_run": "bool",
        "compressed": ["str"],
        "unchanged": [],
        "fallback_segments": [],
        "unlike": {},
        "problems": [],
        "raw_bytes": "int",
        "bytes": "int",
        "calibration_bytes": "int",
        "bits_per_value": "float",
        "preset": None,
        "choice": None,
        "seconds": "float",
    }
    assert report["compressed"] == THREE
    assert report["bytes"] == sum(store.size(name, "kivi") for name in THREE)
    assert "3 documents" in cli("compress", "--recipe", "kivi", "--name", "other").stderr


def test_a_share_of_memory_is_met_and_shown(cli: Cli, store: LocalStore) -> None:
    result = cli("compress", "--recipe", "keydiff", "--resident", "50%", "--json")
    choice = json.loads(result.stdout)["choice"]
    assert choice["resident"] <= 0.5
    assert choice["candidates"] == 1
    assert choice["kl"] is None
    keep = choice["parameters"]["keep"]
    pipeline = store["c.txt"].segments[0].variants["keydiff"].recipe["pipeline"]
    assert pipeline["prune"]["keep"] == keep
    shown = cli("compress", "--recipe", "keydiff", "--resident", "0.5", "--name", "other").stderr
    assert f"other: keep={keep:g}: " in shown
    assert "of the raw cache's memory" in shown
    assert "--recipe kvzip+kivi" in error_of(
        cli("compress", "--recipe", "kivi", "--resident", "50%", code=USAGE)
    )


@pytest.mark.parametrize("share", [("--keep", "0.5"), ("--resident", "60%")])
def test_without_a_recipe_the_best_that_leaves_out_tokens_does(
    cli: Cli, store: LocalStore, share: tuple[str, str]
) -> None:
    assert "attention-matching: compressed 3 documents" in cli("compress", *share).stderr
    cli("compress", "--recipe", "attention-matching", *share, "--name", "named")
    variants = store["c.txt"].segments[0].variants
    assert variants["named"].recipe["pipeline"] == variants["attention-matching"].recipe["pipeline"]


def test_compress_without_a_recipe_makes_a_calibration_and_says_so(cli: Cli, store: LocalStore) -> None:
    first = cli("compress").stderr
    assert first.count("no calibration for tiny yet: making one from") == 1
    assert "klt: compressed 3 documents" in first
    assert "of calibration, for all documents of the model" in first
    assert [calibration.method for calibration in store.calibrations.values()] == ["klt"]
    assert store["c.txt"].variants == ["raw", "klt"]
    again = cli("compress", "--json")
    assert "no calibration" not in again.stderr
    assert json.loads(again.stdout)["unchanged"] == THREE


def test_a_model_that_klt_cannot_learn_is_refused_with_what_to_do(
    cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kvtool.engines.gradients.cross_entropy", lambda *a, **k: cross_entropy(*a, **k).detach()
    )
    assert "compress with --recipe kivi" in error_of(cli("compress", code=FAILED))
    assert store["c.txt"].variants == ["raw"]


def test_compress_with_sides_of_their_own(cli: Cli, store: LocalStore) -> None:
    cli("compress", "--recipe", "kivi", "--keys", "4", "--values", "turboquant:3", "--sinks", "2")
    cli("compress", "--recipe", "kivi", "--values", "turboquant:2.5", "--name", "split")
    cli("compress", "--recipe", "kivi", "--bits", "4", "--recent", "0", "--set", "group=16", "--name", "wide")
    made = {
        name: variant.recipe["pipeline"]
        for name, variant in store["c.txt"].segments[0].variants.items()
        if name != "raw"
    }
    assert [stage["name"] for stage in made["kivi"]["keys"]] == ["window", "group", "pack"]
    assert made["kivi"]["keys"][0]["sinks"] == 2
    assert made["kivi"]["keys"][1]["bits"] == 4
    assert [stage["name"] for stage in made["kivi"]["values"]] == ["hadamard", "lloyd-max", "pack"]
    assert [stage["name"] for stage in made["split"]["values"]] == ["split-lloyd-max", "pack"]
    assert [stage["name"] for stage in made["wide"]["values"]] == ["group", "pack"]
    assert made["wide"]["values"][0]["group"] == 16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "kivi", "--bits", "0"], "bits is 0, expected 1 to 8"),
        (["--recipe", "kivi", "--bits", "17"], "bits is 17, expected 1 to 8"),
        (["--recipe", "kivi", "--keys", "17"], "bits is 17, expected 1 to 8"),
        (["--recipe", "kivi", "--keys", "kiwi"], "'kiwi'"),
        (["--recipe", "kivi", "--values", "kivi:many"], "'many' is no number of bits"),
        (["--recipe", "kivi", "--values", "4.5"], "bits is 4.5, expected 1 to 8"),
        (["--recipe", "kivi", "--keys", "xkv"], "--keys and --values: code 4 and 1 layers together"),
        (["--recipe", "lossless", "--recent", "3"], "no parameter 'recent'; it has: level"),
        (["--set", "group"], "expected NAME=VALUE"),
        (["--set", "recipe=nf4"], "recipe is no parameter of a recipe"),
        (["--recipe", "kivi", "--set", "group=0.5"], "group is 0.5, expected 1 to"),
        (["--recent", "32"], "recipe 'klt' has no parameter 'recent'; it has: step, power"),
        (["--keys", "kivi:4", "--values", "4"], "recipe 'klt' has no parameter 'bits'"),
        (["--recipe", "cachegen", "--set", "level=9"], "level is 9, expected 1, 2, 3, 4, 5"),
    ],
)
def test_compress_options_that_make_no_sense(
    cli: Cli, store: LocalStore, options: list[str], says: str
) -> None:
    assert says in error_of(cli("compress", *options, code=USAGE))
    assert "Invalid value for '--bits'" in cli("compress", "--bits", "two", code=USAGE).stderr


def test_compress_done_in_part(cli: Cli, store: LocalStore) -> None:
    store.path_of(store["c.txt"].segments[0].variants["raw"]).unlink()
    result = cli("compress", "--recipe", "kivi", "--json", code=PARTLY)
    assert json.loads(result.stdout)["compressed"] == THREE[1:]
    assert "c.txt: its artifact" in result.stderr


def test_compress_runs_the_model_for_recipes_that_need_it(
    cli: Cli, store: LocalStore, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    report = json.loads(cli("compress", "--recipe", "zipcache", "--json").stdout)
    assert report["compressed"] == THREE
    assert set(store["c.txt"].variants) == {"raw", "zipcache"}
    other = make_model(tmp_path / "other", seed=1)
    arguments = ["compress", "c.txt", "--recipe", "mikv", "--model", str(other)]
    assert "made by another model" in error_of(cli(*arguments, code=FAILED))
    missing = ["compress", "--recipe", "kivi", "--model", "missing.gguf"]
    assert json.loads(cli(*missing, "--json").stdout)["compressed"] == THREE, "no model should be looked for"


def test_recompressing_with_other_bits_is_refused(cli: Cli, store: LocalStore) -> None:
    cli("compress", "c.txt", "--recipe", "kivi", "--bits", "2")
    made = store["c.txt"]
    assert "--replace" in error_of(cli("compress", "c.txt", "--recipe", "kivi", "--bits", "4", code=FAILED))
    assert store["c.txt"] == made
    cli("compress", "c.txt", "--recipe", "kivi", "--bits", "4", "--replace")
    assert store["c.txt"] != made


def test_documents_that_the_calibration_does_not_fit_are_named_with_what_they_cost(store: LocalStore) -> None:
    report = Report(variant="klt", compressed=["a.md"])
    report.count(Sizes(1, 16_000, 100, 8_000))
    report.unlike["b.txt"] = Sizes(2, 16_000, 900, 8_000)
    report.count(report.unlike["b.txt"])
    (line,) = [line for line in render(report, store).notes if "unlike" in line]
    assert (
        "1 document is unlike the calibration's text and takes more bits per value, beside 0.10 of the others"
        in line
    )
    assert "b.txt (0.90 bits)" in line
    assert "kvtool calibrate" in line
    assert report.to_json()["unlike"] == {"b.txt": 0.9}
