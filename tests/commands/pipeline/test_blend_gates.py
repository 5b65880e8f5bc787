"""Gates of blends: measured against a full prefill, remembered in the lock, and measured again where something changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtool.errors import FAILED, GATE
from tests.commands.conftest import Cli

Build = Callable[..., Mapping[str, Any]]
Edit = Callable[[str, str], None]

BLEND = """
[[build.blends]]
variant = "kivi"
recompute = 0.3
gate = { max_kl = 100.0, min_top1 = 0.0 }
"""
NAME = "blend of kivi, recompute 0.3"


def _subjects(printed: Mapping[str, Any]) -> list[str]:
    return [f"{one['step']} {one['subject']}" for one in printed["differences"]]


@pytest.fixture
def blends(project: Path, edit: Edit) -> Path:
    """The project with one gate more, that of a blend."""
    edit("tokens = 8", "tokens = 8\nanswer_tokens = 4")
    with (project / "kvtool.toml").open("a") as file:
        file.write(BLEND)
    return project


def test_a_blend_is_measured_once(blends: Path, build: Build, edit: Edit) -> None:
    printed = build()
    checks = [check for check in printed["gate"] if check["candidate"] == NAME]
    assert [(check["metric"], check["passed"], check["n"]) for check in checks] == [
        ("kl", True, 3),
        ("top1", True, 3),
    ]
    assert 0 < checks[0]["value"] < 1
    assert 0 <= checks[1]["value"] <= 1
    lock = json.loads((blends / "kvtool.lock").read_bytes())
    assert list(lock["gates"]) == [NAME, "lossless"]
    assert build()["differences"] == []
    assert build("--check")["differences"] == []
    # A change of another variant is none of a blend.
    edit('recipe = "lossless"', 'recipe = "kivi"\nbits = 8\nname = "lossless"')
    assert {check["candidate"] for check in build()["gate"]} == {"lossless"}


def test_a_lock_of_no_blends_is_as_before(blends: Path, build: Build, edit: Edit) -> None:
    edit(BLEND, "")
    build()
    before = (blends / "kvtool.lock").read_bytes()
    with (blends / "kvtool.toml").open("a") as file:
        file.write(BLEND)
    assert _subjects(build("--check", code=GATE)) == [f"evaluate gate of {NAME}"]
    build()
    lock = json.loads((blends / "kvtool.lock").read_bytes())
    del lock["gates"][NAME]
    assert lock == json.loads(before)


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ("max_kl = 100.0", "max_kl = 99.0", NAME),
        ("recompute = 0.3", "recompute = 0.2", "blend of kivi, recompute 0.2"),
        ("answer_tokens = 4", "answer_tokens = 5", NAME),
        ("bits = 4", "bits = 2", NAME),
    ],
)
def test_what_changes_is_measured_again(
    blends: Path, build: Build, edit: Edit, old: str, new: str, again: str
) -> None:
    build()
    edit(old, new)
    planned = build("--dry-run")["estimate"]["gates"]
    assert again in planned
    assert again in {check["candidate"] for check in build()["gate"]}
    assert build()["differences"] == []


def test_a_blend_that_costs_too_much(blends: Path, cli: Cli, build: Build, edit: Edit) -> None:
    """Alone, too: then no variant is measured, and the page has the blend alone."""
    edit("gate = { max_kl = 0.01 }", "")
    edit("max_kl = 100.0", "max_kl = 1e-15")
    edit("[build.measure]", 'report = "page.html"\n[build.measure]')
    result = cli("build", code=GATE)
    assert f"gate FAILED: {NAME}: KL " in result.stderr
    assert f"gate passed: {NAME}: top-1 " in result.stderr
    page = (blends / "page.html").read_text()
    assert "1 of 2 limits was not kept" in page
    assert "1 blend of documents was held against a full prefill" in page
    assert page.count(NAME) >= 3
    assert _subjects(build("--check", code=GATE)) == [f"evaluate gate of {NAME}"]


def test_ones_own_questions(blends: Path, build: Build, edit: Edit) -> None:
    question = {"document": "manual/b.md", "question": "Which page is this?"}
    (blends / "questions.jsonl").write_text(json.dumps({**question, "segment": 0}))
    edit("[build.measure]", '[build.measure]\nquestions = "questions.jsonl"')
    edit("min_top1 = 0.0", "min_answers = 0.0")
    (check,) = (check for check in build()["gate"] if check["metric"] == "answers")
    assert (check["candidate"], check["n"], check["passed"]) == (NAME, 1, True)
    assert 0 <= check["value"] <= 1
    (blends / "questions.jsonl").write_text(
        json.dumps({**question, "segment": 0, "question": "And the other?"})
    )
    assert f"evaluate gate of {NAME}" in _subjects(build("--check", code=GATE))


def test_documents_too_long_for_one_prompt(blends: Path, build: Build, edit: Edit) -> None:
    for name in "abc":
        (blends / f"manual/{name}.md").write_text(f"Page {name}: " + "caches are loaded often. " * 13)
    printed = build(code=FAILED)
    assert "no two of them that follow one another fit" in printed["problems"][0]["message"]
