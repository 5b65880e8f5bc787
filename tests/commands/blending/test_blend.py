"""kvtool blend: what it stores, what other commands make of that, and when it is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool import Store
from kvtool.errors import FAILED, USAGE
from kvtool.system.cache_dir import cache_dir
from tests.commands.conftest import Cli, error_of, typed
from tests.commands.test_repeats import heavy_imports

BLEND = ("blend", "docs/a.md", "docs/b.md", "--save", "both")
ASK = ("ask", "What?", "--doc", "both", "--max-tokens", "4", "--json")


def blended(cli: Cli, *more: str) -> Any:
    return json.loads(cli(*BLEND, *more, "--json").stdout)


def test_a_blend_is_a_document_like_any_other(cli: Cli, store: Store, tiny: kvtool.Model) -> None:
    saved = blended(cli)
    assert typed(saved) == {
        "name": "str",
        "store": "str",
        "documents": ["str"],
        "policy": "str",
        "recompute": "float",
        "tokens": "int",
        "recomputed_tokens": "int",
        "bytes": "int",
        "unchanged": "bool",
        "outdated": [],
        "dry_run": "bool",
        "seconds": "float",
    }
    assert (saved["documents"], saved["policy"]) == (["docs/a.md", "docs/b.md"], "drift")
    assert saved["bytes"] == store["both"].nbytes("raw")
    answer = json.loads(cli(*ASK).stdout)
    assert (answer["cached_tokens"], answer["recomputed_tokens"]) == (saved["tokens"], 0)
    # The same tokens as those of a question over the documents themselves.
    apart = ("ask", "What?", "--doc", "docs/a.md", "--doc", "docs/b.md", "--max-tokens", "4", "--json")
    assert json.loads(cli(*apart).stdout)["prompt_tokens"] == answer["prompt_tokens"]
    assert {one["name"]: one["blend"] for one in json.loads(cli("ls", "--json").stdout)} == {
        "both": True,
        "c.txt": False,
        "docs/a.md": False,
        "docs/b.md": False,
    }
    assert "tokens, blended" in cli("ls").stdout
    cli("compress", "both", "--recipe", "kivi", "--bits", "8")
    assert json.loads(cli(*ASK, "--variant", "kivi").stdout)["variants"] == ["kivi"]
    assert not store.open("both", "kivi").is_exact


def test_show_says_what_it_is_made_of(cli: Cli, store: Store) -> None:
    blended(cli, "--recompute", "0.3", "--policy", "even", "--separator", " ")
    blend = json.loads(cli("show", "both", "--json").stdout)["blend"]
    segments = [store[name].segments[0] for name in ("docs/a.md", "docs/b.md")]
    assert blend == {
        "parts": [
            {
                "document": name,
                "segments": [
                    {"identity": one.identity, "variant": "raw", "artifact": one.variants["raw"].artifact}
                ],
            }
            for name, one in zip(("docs/a.md", "docs/b.md"), segments, strict=True)
        ],
        "variant": "raw",
        "separator": " ",
        "policy": "even",
        "recompute": 0.3,
        "outdated": {},
    }
    assert "  blend   docs/a.md, docs/b.md  policy even, 0.3 recomputed" in cli("show", "both").stdout
    assert json.loads(cli("show", "c.txt", "--json").stdout)["blend"] is None


def test_what_is_there_is_skipped_before_the_weights_are_loaded(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = blended(cli)
    assert heavy_imports(*BLEND) == "heavy:"
    shutil.rmtree(cache_dir() / "runs")

    def never(*_: object) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(kvtool.Model, "model", property(never))
    again = blended(cli)
    assert (first["unchanged"], again["unchanged"]) == (False, True)
    assert again["bytes"] == first["bytes"]
    assert "was there already" in cli(*BLEND).stderr


def test_it_is_out_of_date_once_a_document_changes_and_then_made_again(cli: Cli, store: Store) -> None:
    blended(cli)
    Path("docs/a.md").write_text("The green apple costs two.")
    cli("prefill", "docs/a.md")
    assert "out of date: docs/a.md has changed since" in cli("show", "both").stdout
    verified = json.loads(cli("verify", "--json").stdout)
    assert (verified["broken"], verified["outdated"]) == ({}, {"both": ["docs/a.md"]})
    assert "both is out of date" in cli("verify").stderr
    assert "warning: both: is a blend, and docs/a.md has changed since" in cli(*ASK).stderr
    dry = blended(cli, "--dry-run")
    assert (dry["outdated"], dry["bytes"], dry["dry_run"]) == (["docs/a.md"], 0, True)
    again = blended(cli)
    assert (again["outdated"], again["unchanged"]) == (["docs/a.md"], False)
    assert "out of date" not in cli("show", "both").stdout
    assert cli(*ASK).stderr == ""
    cli("rm", "docs/b.md")
    assert "out of date: docs/b.md is no longer in the store" in cli("show", "both").stdout


def test_a_blend_of_an_old_blend_is_never_there_already(cli: Cli, store: Store) -> None:
    blended(cli)
    outer = ("blend", "both", "c.txt", "--save", "all")
    for _ in range(2):
        cli(*outer)
    Path("docs/a.md").write_text("The green apple costs two.")
    cli("prefill", "docs/a.md")
    assert "both: is a blend, and docs/a.md has changed since" in error_of(cli(*outer, code=FAILED))
    ask = ("ask", "What?", "--doc", "all", "--max-tokens", "1")
    assert "warning: all: is a blend, and both is out of date itself" in cli(*ask).stderr
    assert json.loads(cli("verify", "--json").stdout)["outdated"] == {"all": ["both"], "both": ["docs/a.md"]}
    blended(cli)
    assert "both had changed since the last time" in cli(*outer).stderr
    assert "warning" not in cli(*ask).stderr


def test_a_name_that_is_taken_is_left_alone(cli: Cli, store: Store) -> None:
    blended(cli)
    before = store["both"]
    other = cli("blend", "docs/b.md", "docs/a.md", "--save", "both", code=FAILED)
    assert "both: is in the store already, as a blend of docs/a.md, docs/b.md" in error_of(other)
    assert "--replace" in error_of(cli(*BLEND, "--recompute", "0", code=FAILED))
    own = cli("blend", "docs/a.md", "docs/b.md", "--save", "c.txt", code=FAILED)
    assert "c.txt: is in the store already, as a document of its own" in error_of(own)
    assert store["both"] == before
    assert blended(cli, "--recompute", "0", "--replace")["recompute"] == 0
    assert store["both"] != before
    Path("both").write_text("A file of that name.")
    assert "both: the store holds a blend of other documents" in cli("prefill", "both", code=FAILED).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("docs/a.md",), USAGE, "docs/a.md alone is one segment"),
        (("docs/a.md", "c.txt", "--policy", "prophet"), USAGE, "no question is known ahead of time"),
        (("docs/a.md", "c.txt", "--policy", "ape"), USAGE, "leaves documents side by side"),
        (("docs/a.md", "c.txt", "--recompute", "2"), USAGE, "expected a share"),
        (("docs/a.md", "c.txt", "--policy", "all", "--recompute", "0.5"), USAGE, "always has 1"),
        (("docs/a.md", "missing.md"), FAILED, "missing.md: is not in the store"),
        (("docs/a.md", "c.txt", "--variant", "kivi"), FAILED, "has no variant 'kivi'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cli: Cli, store: Store, arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert says in error_of(cli("blend", *arguments, "--save", "both", code=code))
    assert "both" not in store
