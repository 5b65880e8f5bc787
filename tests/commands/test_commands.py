"""Every command: its exit code, its one line of error, its data on stdout and its JSON."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import kvtool
from kvtool import Store
from kvtool.cli import app
from kvtool.errors import DONE, EXIT_CODES, FAILED, GATE, PARTLY, USAGE

THREE = ["c.txt", "docs/a.md", "docs/b.md"]
COMMANDS = sorted(c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback)
Cli = Callable[..., Result]


@pytest.fixture
def cli(corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs kvtool in the corpus's directory, with the tiny model."""
    monkeypatch.setenv("KVTOOL_MODEL", str(tiny_dir))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")

    def cli(*args: str, code: int = DONE) -> Result:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        assert "not expected" not in result.stderr
        return result

    return cli


def error_of(result: Result) -> str:
    """The one line of error that a failed command ends with; nothing on stdout."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0]


def typed(value: object) -> object:
    """The shape of a JSON value: its keys and types."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(value[0])] if value else []
    return None if value is None else type(value).__name__


# Help and version


def test_every_command_is_known() -> None:
    assert set(COMMANDS) >= {"ask", "compress", "gc", "ls", "prefill", "recipes", "rm", "show", "verify"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_documents_the_exit_codes(cli: Cli, command: str) -> None:
    text = cli(*command.split(), "--help").stdout
    assert EXIT_CODES in " ".join(text.split())


@pytest.mark.parametrize("command", ["ls", "show", "verify", "prefill", "compress", "ask", "recipes"])
def test_commands_that_print_data_have_json(cli: Cli, command: str) -> None:
    assert "--json" in cli(command, "--help").stdout


@pytest.mark.parametrize("command", ["prefill", "rm", "gc"])
def test_commands_that_write_over_or_delete_have_a_dry_run(cli: Cli, command: str) -> None:
    assert "--dry-run" in cli(command, "--help").stdout


def test_version(cli: Cli) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", cli("--version").stdout)


# JSON


DIGEST = re.compile(r"[0-9a-f]{64}")


def test_ls(cli: Cli, store: Store) -> None:
    rows = json.loads(cli("ls", "--json").stdout)
    assert [row["name"] for row in rows] == THREE
    assert typed(rows[0]) == {
        "name": "str",
        "segments": "int",
        "tokens": "int",
        "model": "str",
        "variants": {"raw": "int"},
    }
    assert rows[0]["variants"]["raw"] == store.size("c.txt")
    lines = cli("ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == THREE


def test_show(cli: Cli, store: Store) -> None:
    kvtool.compress(store, recipe="kivi")
    shown = json.loads(cli("show", "c.txt", "--json").stdout)
    variant = {"digest": "str", "file": "str", "bytes": "int", "bits_per_value": "float"}
    recipe = shown["segments"][0]["variants"]["kivi"].pop("recipe")
    assert recipe["name"] == "kivi"
    assert typed(shown) == {
        "name": "str",
        "model": {"name": "str", "fingerprint": "str"},
        "prefix": {
            "identity": "str",
            "digest": "str",
            "tokens": "int",
            "origin": {"kind": "str", "system": None},
        },
        "segments": [
            {
                "segment": "int",
                "tokens": "int",
                "characters": ["int"],
                "identity": "str",
                "variants": {"raw": variant | {"recipe": None}, "kivi": variant},
            }
        ],
        "calibrations": [],
    }
    for variant in shown["segments"][0]["variants"].values():
        path = Path(variant["file"])
        assert path.stem == variant["digest"]
        assert path.stat().st_size == variant["bytes"]
        assert variant["bits_per_value"] == round(8 * variant["bytes"] / store.read("c.txt").n_elements, 4)
    assert "30 tokens" in cli("show", "c.txt").stdout


def test_verify(cli: Cli, store: Store) -> None:
    assert json.loads(cli("verify", "--json").stdout) == {"sound": 4, "broken": {}, "removed": []}
    variant = store["c.txt"].segments[0].variants["raw"]
    path = store.path_of(variant)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    found = json.loads(cli("verify", "--json", code=GATE).stdout)
    assert found["sound"] == 3
    assert found["broken"].keys() == {variant.artifact}
    assert found["removed"] == []
    assert path.exists()
    result = cli("verify", "--remove", code=GATE)
    assert str(path) in error_of(result)
    assert "3 artifacts are sound, 1 are not, 1 removed" in result.stderr
    assert not path.exists()
    cli("verify", "docs/a.md")
    cli("verify", code=GATE)
    cli("prefill", "docs", "c.txt")
    assert path.read_bytes() == data
    cli("verify")


def test_verify_removes_only_what_is_broken(cli: Cli, tiny: kvtool.Model) -> None:
    # A newer kvtool may read what this one cannot.
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("kvtool.artifact.write.FORMAT", 2)
        kvtool.prefill(["c.txt"], model=tiny, store=Store("newer"))
    before = sorted(Path("newer").rglob("*"))
    assert "upgrade kvtool" in cli("verify", "--remove", "--store", "newer", code=GATE).stderr
    assert sorted(Path("newer").rglob("*")) == before


def test_prefill(cli: Cli) -> None:
    first = json.loads(cli("prefill", "docs", "c.txt", "--json").stdout)
    assert typed(first) == {
        "store": "str",
        "model": {"name": "str", "fingerprint": "str"},
        "dry_run": "bool",
        "prefilled": ["str"],
        "unchanged": [],
        "averaged": [],
        "without_neighbours": [],
        "problems": [],
        "tokens": "int",
        "seconds": "float",
    }
    assert sorted(first["prefilled"]) == THREE
    again = json.loads(cli("prefill", "docs", "c.txt", "--json").stdout)
    assert again["prefilled"] == []
    assert sorted(again["unchanged"]) == THREE
    assert again["tokens"] == 0
    assert "3 were there already" in cli("prefill", "docs", "c.txt").stderr


def test_compress(cli: Cli, store: Store) -> None:
    found = json.loads(cli("compress", "--recipe", "kivi", "--bits", "4", "--json").stdout)
    assert typed(found) == {
        "variant": "str",
        "dry_run": "bool",
        "compressed": ["str"],
        "unchanged": [],
        "strayed": [],
        "problems": [],
        "raw_bytes": "int",
        "bytes": "int",
        "calibration_bytes": "int",
        "bits_per_value": "float",
        "seconds": "float",
    }
    assert found["compressed"] == THREE
    assert found["bytes"] == sum(store.size(name, "kivi") for name in THREE)
    assert "3 documents" in cli("compress", "--recipe", "kivi", "--name", "other").stderr


def test_compress_without_a_recipe_makes_a_calibration_and_says_so(cli: Cli, store: Store) -> None:
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
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kvtool.engines.gradients.cross_entropy", lambda *a, **k: cross_entropy(*a, **k).detach()
    )
    assert "compress with --recipe kivi" in error_of(cli("compress", code=FAILED))
    assert store["c.txt"].variants == ["raw"]


def test_ask(cli: Cli, store: Store) -> None:
    arguments = ("ask", "What?", "--doc", "c.txt", "--max-tokens", "3")
    found = json.loads(cli(*arguments, "--json").stdout)
    assert typed(found) == {
        "documents": ["str"],
        "variants": ["str"],
        "policy": "str",
        "recomputed_tokens": "int",
        "answer": "str",
        "answer_tokens": "int",
        "prompt_tokens": "int",
        "cached_tokens": "int",
        "load_seconds": "float",
        "first_token_seconds": "float",
        "first_token_seconds_without_cache": None,
    }
    assert found["cached_tokens"] == 31
    streamed = cli(*arguments)
    assert streamed.stdout.rstrip("\n") == found["answer"].rstrip("\n")
    assert "first token after" in streamed.stderr
    without = json.loads(cli(*arguments, "--json", "--no-cache").stdout)
    assert without["answer"] == found["answer"]
    assert without["variants"] is None
    assert without["cached_tokens"] == 0
    compared = json.loads(cli(*arguments, "--json", "--compare").stdout)
    assert compared["first_token_seconds_without_cache"] > 0


def test_recipes(cli: Cli) -> None:
    rows = json.loads(cli("recipes", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == sorted(by_name)
    assert {"kivi", "lossless"} <= by_name.keys()
    for row in rows:
        assert row.keys() == {"name", "summary", "paper", "needs", "nominal_bits", "parameters"}
        assert (row["nominal_bits"] is None) == (row["needs"] == ["calibration"])
        assert 0 < (row["nominal_bits"] or 1) < 17
        for parameter in row["parameters"].values():
            assert parameter.keys() == {"default", "allowed", "help"}
    assert by_name["zipcache"]["needs"] == ["attention"]
    assert [line.split()[0] for line in cli("recipes").stdout.splitlines()] == ["recipe", *by_name]
    page = cli("recipes", "kivi").stdout
    assert "What differs." in page
    assert "group=32" in page
    assert json.loads(cli("recipes", "kivi", "--json").stdout) == by_name["kivi"]
    assert "'kiwi'" in error_of(cli("recipes", "kiwi", code=USAGE))


def test_help_says_what_is_the_default(cli: Cli) -> None:
    shown = cli("compress", "--help").stdout
    assert "(default: all)" in shown
    assert "[default: klt]" in shown
    assert "(default: kv-store)" in shown


def test_compress_with_sides_of_their_own(cli: Cli, store: Store) -> None:
    cli("compress", "--recipe", "kivi", "--keys", "4", "--values", "turboquant:3", "--sinks", "2")
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
def test_compress_options_that_make_no_sense(cli: Cli, store: Store, options: list[str], says: str) -> None:
    assert says in error_of(cli("compress", *options, code=USAGE))
    assert "Invalid value for '--bits'" in cli("compress", "--bits", "two", code=USAGE).stderr


# Removing


def test_rm_and_gc(cli: Cli, store: Store) -> None:
    before = sorted(store.root.rglob("*"))
    assert "would remove c.txt" in cli("rm", "c.txt", "--dry-run").stderr
    assert sorted(store.root.rglob("*")) == before
    artifact = store.path_of(store["c.txt"].segments[0].variants["raw"])
    assert "freed 1 artifacts" in cli("rm", "c.txt").stderr
    assert not artifact.exists()
    assert list(store) == THREE[1:]
    store.remove("docs/a.md")
    unused = cli("gc", "--dry-run").stdout.splitlines()
    assert len(unused) == 1
    assert Path(unused[0]).exists()
    assert cli("gc").stdout == ""
    assert not Path(unused[0]).exists()
    cli("verify")


def test_rm_of_one_unknown_name_removes_none(cli: Cli, store: Store) -> None:
    assert "docs/a.md" in error_of(cli("rm", "c.txt", "docs/a.mb", code=FAILED))
    assert list(store) == THREE


# Dry runs and absent stores write nothing


def test_prefill_dry_run_writes_nothing(cli: Cli, corpus: Path) -> None:
    before = sorted(corpus.rglob("*"))
    result = cli("prefill", "docs", "c.txt", "--dry-run")
    assert sorted(result.stdout.splitlines()) == THREE
    assert sorted(corpus.rglob("*")) == before


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["gc"], ["compress"]], ids=" ".join)
def test_a_store_that_is_not_there_is_empty(cli: Cli, corpus: Path, command: list[str]) -> None:
    cli(*command, "--store", "none")
    assert not (corpus / "none").exists()


# What goes wrong


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "docs/a.mb"],
        ["verify", "docs/a.mb"],
        ["rm", "docs/a.mb"],
        ["compress", "docs/a.mb"],
        ["ask", "What?", "--doc", "docs/a.mb"],
        ["ask", "What?", "--doc", "c.txt", "--doc", "docs/a.mb"],
    ],
    ids=lambda a: a[0],
)
def test_an_unknown_document_suggests_near_names(cli: Cli, store: Store, arguments: list[str]) -> None:
    assert "docs/a.mb: is not in the store kv-store; did you mean docs/a.md" in error_of(
        cli(*arguments, code=FAILED)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls", "--store", "docs"], "docs: is not a kvtool store"),
        (["ls", "--store", "ftp://host"], "store ftp://host: expected http://HOST:PORT"),
        (["ask", "What?", "--doc", "c.txt", "--variant", "kivi"], "run kvtool compress c.txt --recipe kivi"),
        (["ask", "What?", "--doc", "c.txt", "--segment", "7"], "no segment 7"),
        (["ask", "What?", "--doc", "c.txt", "--segment", "-1"], "no segment -1"),
        (["ask", "What?", "--doc", "c.txt", "--model", "nowhere"], "nowhere"),
        (["ask", "What?", "--doc", "c.txt", "--dtype", "bfloat16"], "its dtype is float32"),
        (["ask", "What?", "--doc", "c.txt", "--dtype", "bfloat16", "--no-cache"], "its dtype is float32"),
        (["ask", "What?", "--doc", "../c.txt"], "is not a document name"),
        (["prefill", "nothing.md"], "nothing.md"),
        (["prefill", "docs", "--model", "nowhere.gguf"], "no such GGUF file"),
        (["prefill", "docs", "--device", "cuda"], "no CUDA GPU"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_failures(
    cli: Cli, store: Store, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code = USAGE if "ftp://host" in arguments else FAILED
    result = cli(*arguments, code=code)
    assert says in result.stderr
    error_of(result)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["prefill"],
        ["ask"],
        ["ask", "What?"],
        ["ls", "--colour"],
        ["ask", "What?", "--doc", "c.txt", "--max-tokens", "0"],
        ["ask", "What?", "--doc", "c.txt", "--temperature", "-1"],
        ["ask", "What?", "--doc", "c.txt", "--recompute", "1.5"],
        ["ask", "What?", "--doc", "c.txt", "--recompute", "nan"],
        ["ask", "What?", "--doc", "c.txt", "--policy", "evne"],
        ["ask", "What?", "--doc", "c.txt", "--policy", "ape", "--recompute", "0.3"],
        ["ask", "What?", "--doc", "c.txt", "--trace", "trace.json", "--no-cache"],
        ["compress", "--recipe", "gzip"],
        ["compress", "--recipe", "kivi", "--bits", "99"],
        ["compress", "--name", "raw"],
        ["prefill", "docs", "--system", "x", "--no-prefix"],
        ["prefill", "docs", "--segment-tokens", "0"],
        ["prefill", "docs", "--segment-tokens", "9999"],
        ["prefill", "docs", "--step-tokens", "0"],
        ["prefill", "docs", "--dtype", "int8"],
        ["prefill", "docs", "--load-in", "3bit"],
    ],
    ids=" ".join,
)
def test_usage(cli: Cli, store: Store, arguments: list[str]) -> None:
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    result = cli(*arguments, code=USAGE)
    assert result.stdout == "" or not arguments
    assert result.stderr or not arguments
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


def test_done_in_part(cli: Cli) -> None:
    Path("docs/empty.md").write_text("")
    result = cli("prefill", "docs", "missing.md", "--json", code=PARTLY)
    found = json.loads(result.stdout)
    assert sorted(found["prefilled"]) == THREE[1:]
    assert len(found["problems"]) == 2
    assert result.stderr.count("error: ") == 2
    assert "docs/empty.md" in result.stderr
    assert list(Store("kv-store")) == THREE[1:]


def test_nothing_done_is_failed(cli: Cli, corpus: Path) -> None:
    Path("empty.md").write_text(" \n")
    assert "empty.md" in error_of(cli("prefill", "empty.md", code=FAILED))
    assert not (corpus / "kv-store").exists()


def test_compress_done_in_part(cli: Cli, store: Store) -> None:
    store.path_of(store["c.txt"].segments[0].variants["raw"]).unlink()
    result = cli("compress", "--recipe", "kivi", "--json", code=PARTLY)
    assert json.loads(result.stdout)["compressed"] == THREE[1:]
    assert "c.txt: its artifact" in result.stderr


def test_ls_goes_on_past_a_broken_manifest(cli: Cli, store: Store) -> None:
    (store.root / "manifests" / "c.txt.json").write_bytes(b"{")
    result = cli("ls", "--json", code=PARTLY)
    assert [row["name"] for row in json.loads(result.stdout)] == THREE[1:]
    assert "c.txt.json: is not a manifest" in result.stderr
    cli("verify", code=GATE)


def test_compress_runs_the_model_for_recipes_that_need_it(
    cli: Cli, store: Store, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    found = json.loads(cli("compress", "--recipe", "zipcache", "--json").stdout)
    assert found["compressed"] == THREE
    assert set(store["c.txt"].variants) == {"raw", "zipcache"}
    other = make_model(tmp_path / "other", seed=1)
    arguments = ["compress", "c.txt", "--recipe", "mikv", "--model", str(other)]
    assert "made by another model" in error_of(cli(*arguments, code=FAILED))
    missing = ["compress", "--recipe", "kivi", "--model", "missing.gguf"]
    assert json.loads(cli(*missing, "--json").stdout)["compressed"] == THREE, "no model should be looked for"


def test_recompressing_with_other_bits_is_refused(cli: Cli, store: Store) -> None:
    cli("compress", "c.txt", "--recipe", "kivi", "--bits", "2")
    made = store["c.txt"]
    assert "--replace" in error_of(cli("compress", "c.txt", "--recipe", "kivi", "--bits", "4", code=FAILED))
    assert store["c.txt"] == made
    cli("compress", "c.txt", "--recipe", "kivi", "--bits", "4", "--replace")
    assert store["c.txt"] != made


def test_a_question_longer_than_the_context_fails_before_the_model_runs(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(kvtool.Model, "model", property(never))
    result = cli("ask", "Why? " * 100, "--doc", "c.txt", code=USAGE)
    assert "has a context of 512; ask a shorter question" in error_of(result)


def test_segments_of_a_long_document_are_blended(cli: Cli) -> None:
    Path("long.md").write_text("\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(4)))
    cli("prefill", "long.md", "--segment-tokens", "40")
    one, whole = (
        json.loads(cli("ask", "What?", "--doc", "long.md", *which, "--max-tokens", "1", "--json").stdout)
        for which in (("--segment", "3"), ())
    )
    assert one["recomputed_tokens"] == 0
    assert whole["recomputed_tokens"] > 0
    assert whole["cached_tokens"] > 3 * one["cached_tokens"]


def test_several_documents_are_blended(cli: Cli, store: Store) -> None:
    cli("compress", "--recipe", "kivi", "--bits", "4")
    asked = ("ask", "What?", "--doc", "c.txt", "--doc", "docs/a.md@kivi", "--max-tokens", "4", "--json")
    found = json.loads(cli(*asked, "--trace", "trace.json").stdout)
    assert (found["documents"], found["variants"]) == (["c.txt", "docs/a.md"], ["raw", "kivi"])
    spans = json.loads(Path("trace.json").read_text())["traceEvents"]
    assert {"read", "decode", "move", "recompute"} <= {span.get("cat") for span in spans}
    exact = json.loads(cli(*asked, "--recompute", "1").stdout)
    assert exact["recomputed_tokens"] == exact["cached_tokens"] == found["cached_tokens"]
    assert exact["answer"] == json.loads(cli(*asked, "--no-cache").stdout)["answer"]
    assert "evenly" in cli("ask", "--policies", "-").stdout


def test_an_unexpected_error_is_one_line_too(store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store), "__iter__", lambda _: 1 / 0)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == FAILED
    assert result.stderr.splitlines() == [
        "kvtool: ZeroDivisionError: division by zero. This is not expected; run with kvtool --debug for a traceback"
    ]
    assert isinstance(CliRunner().invoke(app, ["--debug", "ls"]).exception, ZeroDivisionError)


def test_an_error_of_many_lines_is_shown_as_one(cli: Cli, store: Store) -> None:
    assert "\\n" in error_of(cli("show", "../a\nb", code=FAILED))


def test_a_full_disk(cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    Path("docs/new.md").write_text("New.")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kvtool.system.files.os.fsync", full)
    assert "the disk is full. What was stored before is safe" in error_of(cli("prefill", "docs", code=FAILED))
    assert "the disk is full" in cli("compress", "--recipe", "kivi", code=FAILED).stderr
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "command", [["ask", "What?", "--doc", "c.txt"], ["show", "c.txt"]], ids=lambda c: c[0]
)
def test_a_broken_artifact(cli: Cli, store: Store, command: list[str]) -> None:
    path = store.path_of(store["c.txt"].segments[0].variants["raw"])
    path.write_bytes(path.read_bytes()[:-1])
    error = error_of(cli(*command, code=FAILED))
    assert str(path) in error
    assert "kvtool verify --remove takes broken artifacts out" in error
