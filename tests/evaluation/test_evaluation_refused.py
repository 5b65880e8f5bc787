"""Bad input is named before anything long starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.evaluation.evaluation import evaluate
from kvtool.evaluation.gate import Gate
from kvtool.evaluation.run import Runner
from kvtool.measurement.scope import Scope

from .conftest import KL, SMALL, Broken, prose


def test_a_model_too_small_for_every_haystack_is_named(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "short", max_position_embeddings=600)
    model = kvtool.load_model(tmp_path / "short", device="cpu")
    (tmp_path / "d.txt").write_text(prose(60, 3))
    monkeypatch.chdir(tmp_path)
    store = kvtool.Store("store")
    assert not kvtool.prefill("d.txt", model=model, store=store).problems
    with pytest.raises(kvtool.KvtoolError, match="--lengths 512: short has a context of 600"):
        evaluate(store, model=model, recipes=["nf4"], scope=Scope(metrics=("retrieval",)))


class Refused(Exception):
    """Something long was started."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipes": ["kiwi"]}, "kiwi"),
        ({"recipes": ["kivi:bits=99"]}, "bits is 99"),
        ({"recipes": ["kivi:bits"]}, "expected NAME=VALUE"),
        ({"recipes": ["kivi", "recent=32"]}, "after colons"),
        ({"recipes": ["nf4"], "names": ["nowhere.txt"]}, "is not in the store"),
        ({"recipes": ["nf4"], "names": ["a.txt"], "scope": Scope(tokens=2000)}, "a.txt: segment 0 has"),
        ({"recipes": ["nf4"], "scope": Scope(tokens=2000)}, "2 more are as short"),
        ({"recipes": ["nf4"], "scope": Scope(lengths=(100_000,))}, "has a context of 4096"),
        ({"recipes": ["nf4"], "scope": Scope(lengths=(60,))}, "length 60"),
        ({"recipes": ["nf4"], "questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"recipes": ["nf4"], "gate": Gate(min_answers=0.9)}, "--min-answers"),
        ({"recipes": ["nf4"], "gate": Gate(max_ratio_loss=0.1)}, "--baseline"),
        ({"recipes": ["nf4"], "gate": Gate(max_kl=0.1), "scope": Scope(metrics=("times",))}, "--max-kl"),
        ({"recipes": ["nf4"], "scope": Scope(metrics=("answers",))}, "nothing to measure"),
        ({"recipes": ["nf4"], "questions": "q.jsonl", "scope": KL}, "--metrics leaves out answers"),
        ({"recipes": ["nf4"], "gate": Gate(max_ratio_loss=0.1, baseline={"a": 1.0})}, "has no nf4, only a"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_named_before_anything_long(
    documents: kvtool.Store,
    lively: kvtool.Model,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    def start(*_: Any) -> None:
        raise Refused

    monkeypatch.setattr(Runner, "measure", start)
    monkeypatch.setattr(Runner, "kv", start)
    with pytest.raises(kvtool.KvtoolError, match=message):
        evaluate(documents, arguments.pop("names", None), model=lively, **{"scope": SMALL, **arguments})


def test_a_candidate_that_cannot_be_used_is_named_at_once(
    documents: kvtool.Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cache: kvtool.DocumentCache, bench: Any) -> None:
        raise kvtool.KvtoolError(None, "its heads are odd")

    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("something long was started"))
    with pytest.raises(kvtool.KvtoolError, match=r"odd one: cannot be used with lively.*: its heads are odd"):
        evaluate(documents, model=lively, recipes=["nf4"], scope=KL, others=[Broken("odd one", fail)])


def test_a_candidate_that_needs_more_than_a_few_tokens_is_tried_on_all(
    documents: kvtool.Store, lively: kvtool.Model
) -> None:
    # A third of the few tokens is less than what always stays.
    recipes = ["streaming-llm:keep=0.3:last=60"]
    candidates = evaluate(documents, model=lively, recipes=recipes, scope=KL)["candidates"]
    assert [candidate["name"] for candidate in candidates] == ["raw", *recipes]
    with pytest.raises(
        kvtool.KvtoolError, match=r"last=600 cannot be used with|last=600: cannot be used with"
    ):
        evaluate(documents, model=lively, recipes=["streaming-llm:keep=0.3:last=600"], scope=KL)


def test_another_model_is_refused(documents: kvtool.Store, tiny: kvtool.Model) -> None:
    with pytest.raises(kvtool.KvtoolError, match="another model"):
        evaluate(documents, model=tiny, recipes=["nf4"], scope=KL)
