"""A store made by kvtool 0.1 before the modules were regrouped, kept forever: it loads, verifies, answers and blends unchanged.

``answers.json`` holds what that version answered, token by token; but for the policy ``drift``, which has changed since. The
store has every kind of variant, a calibration, the averages made for blending (then called ``expected``) and a blend that
was kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.ask import ask
from kvtool.blending.blend import BlendOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
ANSWERS = json.loads((GOLDEN / "answers.json").read_text())
PARAMETERS: dict[str, dict[str, Any]] = {
    "cachegen": {"group": 10, "level": 3},
    "kivi": {"bits": 4},
    "klt": {"preset": "balanced", "coder": "context"},
    "lossless": {},
    "turboquant": {"objective": "prod"},
    "xkv": {},
    "zipcache": {"choice": "layer"},
}
"""The recipes that its variants were made with."""


@pytest.fixture(scope="module")
def model() -> kvtool.Model:
    return kvtool.load_model(GOLDEN / "model", device="cpu")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kvtool.Store:
    """A copy, with its documents in the working directory."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return kvtool.Store("kv-store")


def test_every_artifact_and_calibration_is_sound(store: kvtool.Store) -> None:
    artifacts = [
        store.open_artifact(variant) for document in store.values() for variant in document.artifacts
    ]
    for artifact in artifacts:
        artifact.verify()
    assert len(artifacts) == 1 + 3 * (1 + 10) + 1
    assert [store.calibrations[digest].method for digest in store.calibrations] == ["klt"]


@pytest.mark.parametrize(
    "asked", ANSWERS["asked"], ids=lambda a: "-".join(map(str, [*a["documents"], *list(a.values())[1:-2]]))
)
def test_it_answers_as_it_did(store: kvtool.Store, model: kvtool.Model, asked: dict[str, Any]) -> None:
    how = BlendOptions(**{name: asked[name] for name in ("policy", "recompute") if name in asked})
    variant = asked["variant"].replace("expected", "averaged")
    answer = ask(
        ANSWERS["question"], asked["documents"], model, store, variant=variant, options=how, max_tokens=12
    )
    assert list(answer.token_ids) == asked["token_ids"]
    assert answer.recomputed_tokens == asked["recomputed"]


def test_prefilling_again_finds_everything(store: kvtool.Store, model: kvtool.Model) -> None:
    report = kvtool.prefill(["docs", "c.txt"], model=model, store=store, neighbours=2)
    assert not report.problems
    assert report.unchanged == ["docs/a.md", "docs/b.md", "c.txt"]
    assert not report.model_tokens


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_compressing_again_finds_everything(store: kvtool.Store, model: kvtool.Model, recipe: str) -> None:
    names = ["c.txt", "docs/a.md", "docs/b.md"]
    report = kvtool.compress(store, names, recipe=recipe, model=model, **PARAMETERS[recipe])
    assert (report.unchanged, report.compressed, report.problems) == (names, [], [])


def test_compressing_the_averages_again_finds_everything(store: kvtool.Store) -> None:
    names = ["c.txt", "docs/a.md", "docs/b.md"]
    report = kvtool.compress(store, names, recipe="kivi", source="averaged", bits=4)
    assert (report.variant, report.unchanged, report.problems) == ("kivi-averaged", names, [])
