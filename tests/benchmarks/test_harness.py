"""The tasks that lm-evaluation-harness gets, and what it is made from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import kvtool
from benchmarks.peers.environments import REQUIREMENTS
from benchmarks.serving import harness


def test_every_question_has_one_right_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvtool, "prefill", lambda *_, **__: SimpleNamespace(problems=[]))
    model: Any = None
    harness._prepared(tmp_path, model, 2, 3)
    items = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(items) == 6
    for item in items:
        assert item["document"] in {path.read_text() for path in tmp_path.glob("*.txt")}
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["label"]] == item["answer"]
        inn = item["question"].partition(" at the ")[2].partition(" cost")[0]
        assert re.search(rf"The {inn} has .* costs {item['answer']} crowns", item["document"])
    for path in (tmp_path / "tasks").iterdir():
        assert yaml.safe_load(path.read_text())["task"] == path.stem


def test_its_environment_is_pinned() -> None:
    pins = (Path(harness.__file__).parent / f"lm_eval{REQUIREMENTS}").read_text().splitlines()
    packages = [pin for pin in pins if pin and not pin.startswith("#")]
    assert [pin for pin in packages if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin)] == []
    assert {"torch==2.13.0", "transformers==5.23.0"} <= set(packages)
