"""kvtool bench, end to end: a table and sentences on stdout, what they count on stderr, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

import kvtool
from kvtool.breakeven.sums import threshold, uses_to_break_even
from kvtool.cli import app
from kvtool.errors import DONE, USAGE

SVG = "{http://www.w3.org/2000/svg}"


def run(*args: str, code: int = DONE) -> Result:
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == code, (args, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def measured(embedded: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One run of the embedded model, as JSON, and its picture."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("kvtool.model.model.load_model", lambda *_, **__: embedded)
        result = run(
            "--tokens", "192,64", "--link", "100Mbit", "--picture", "pays.svg", "--repeats", "1", "--json"
        )
    assert "picture: pays.svg" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["pays.svg"]
    return json.loads(result.stdout), folder / "pays.svg"


@pytest.mark.slow
def test_both_variants_are_measured_at_each_length(measured: tuple[Any, Path]) -> None:
    result, _ = measured
    assert [variant["name"] for variant in result["variants"]] == ["raw", "klt"]
    assert result["link"] == {"rate": "100Mbit", "bytes_per_second": 12.5e6}
    for variant in result["variants"]:
        assert [length["tokens"] for length in variant["lengths"]] == [64, 192]
        assert all(
            length[f"{part}_seconds"] > 0
            for length in variant["lengths"]
            for part in ("prefill", "write", "load", "transfer")
        )
    raw, klt = (variant["lengths"][1] for variant in result["variants"])
    # 30 layers of keys and values, 3 heads of 64 numbers in 32 bits, and a header.
    assert 0 < raw["bytes"] - 192 * 30 * 2 * 3 * 64 * 4 < 50_000
    assert klt["bytes"] < raw["bytes"] / 20
    assert raw["encode_seconds"] == 0 < klt["encode_seconds"]
    assert [variant["calibration_bytes"] > 1e6 for variant in result["variants"]] == [False, True]


@pytest.mark.slow
def test_the_sums_are_of_what_was_measured(measured: tuple[Any, Path]) -> None:
    result, _ = measured
    for variant in result["variants"]:
        for one in variant["lengths"]:
            assert one["transfer_seconds"] == one["bytes"] / 12.5e6
            once = one["prefill_seconds"] + one["write_seconds"] + one["encode_seconds"]
            saving = one["prefill_seconds"] - one["transfer_seconds"] - one["load_seconds"]
            assert (one["make_seconds"], one["saving_seconds"]) == pytest.approx((once, saving))
            assert one["uses"] == uses_to_break_even(one["make_seconds"], one["saving_seconds"])
        savings = [(one["tokens"], one["saving_seconds"]) for one in variant["lengths"]]
        assert variant["saves_from"]["text"] == threshold(savings).describe()
        assert variant["bytes_per_token"] == variant["lengths"][1]["bytes"] / 192


@pytest.mark.slow
def test_the_picture_is_a_file_of_its_own(measured: tuple[Any, Path]) -> None:
    result, path = measured
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == f"{SVG}svg"
    assert "--series-1" in (root.findtext(f"{SVG}style") or "")
    titles = {e.get("id"): e.findtext(f"{SVG}title") for e in root.iter() if e.get("id")}
    for n, variant in enumerate(result["variants"]):
        assert f"{variant['name']}: a use {variant['saves_from']['text']}." in (
            root.findtext(f"{SVG}desc") or ""
        )
        for m, one in enumerate(variant["lengths"]):
            uses = "never" if one["uses"] is None else f"{one['uses']:,} uses"
            assert titles[f"breakeven-uses-{n}-{m}"] == f"{variant['name']}, {one['tokens']} tokens: {uses}"
            assert (titles[f"breakeven-use-{n}-{m}"] or "").endswith(" s")


def test_a_line_for_each_variant_and_length(tiny_dir: Path) -> None:
    Path("own.txt").write_text("Seven ships left the harbour at dawn. " * 40)
    tiny = ("--model", str(tiny_dir), "--device", "cpu")
    result = run("own.txt", *tiny, "--tokens", "64,128", "--recipes", "raw,kivi:bits=4", "--repeats", "1")
    table, sentences = result.stdout.split("\n\n")
    rows = [line.split() for line in table.splitlines()]
    assert " ".join(rows[0]) == "candidate tokens MB prefill s once s load s saved s uses"
    assert [row[:2] for row in rows[1:]] == [
        ["raw", "64"],
        ["raw", "128"],
        ["kivi:bits=4", "64"],
        ["kivi:bits=4", "128"],
    ]
    assert [line.split(":")[0] for line in sentences.splitlines()] == ["raw", "kivi"]
    assert all(" KB a token" in line for line in sentences.splitlines())
    assert "each use saves prefill - transfer - load" in result.stderr
    assert "--link counts a transfer" in result.stderr
    assert not Path("kv-store").exists()


def test_klt_without_a_calibration_is_left_out_and_said_to_be(tiny_dir: Path) -> None:
    tiny = ("--model", str(tiny_dir), "--device", "cpu", "--tokens", "64", "--repeats", "1")
    result = run(*tiny)
    assert "klt is left out: needs a calibration of method 'klt'" in result.stderr
    assert "kvtool calibrate --recipe klt" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[1:2]] == ["raw"]
    # Who names it is told at once.
    assert "run kvtool calibrate --recipe klt first" in run(*tiny, "--recipes", "klt", code=USAGE).stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--link", "100Mb"], "--link 100Mb: is no rate of a link; expected a number above 0 with kbit"),
        (["--tokens", "many"], "--tokens many: is no number of tokens; expected numbers as in 256,1024,4096"),
        (["--tokens", "8"], "--tokens 8: expected at least 64"),
        (["--tokens", ","], "--tokens: is empty"),
        (["--tokens", "100000"], "which leaves"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--picture", "pays.png"], "--picture pays.png: pictures are SVG"),
        (["--picture", "no/pays.svg"], "--picture no/pays.svg: no is no directory"),
        (["--recipes", "nothing"], "no recipe is called 'nothing'"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(
    flags: list[str], message: str, tiny_dir: Path
) -> None:
    assert message in run("--model", str(tiny_dir), "--device", "cpu", *flags, code=USAGE).stderr


def test_no_picture_is_overwritten(tiny_dir: Path) -> None:
    Path("pays.svg").write_text("mine")
    result = run("--model", str(tiny_dir), "--picture", "pays.svg", code=USAGE)
    assert "is there already; give another name, or --replace it" in result.stderr
    assert Path("pays.svg").read_text() == "mine"
