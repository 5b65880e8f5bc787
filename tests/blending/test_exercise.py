"""The policy of docs/exercises/blend-policy.md, put into a copy of the one file that the page changes."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool import Store
from kvtool.blending import policies
from kvtool.blending.policy_inputs import PolicyInputs
from kvtool.errors import UsageError

PAGE = (Path(__file__).parents[2] / "docs/exercises/blend-policy.md").read_text()
NAME = "value-weighted"
DOCUMENTS = ["a.txt", "b.txt", "c@home.txt"]
QUESTION = "How many ships are in the harbour?"

MakeInputs = Callable[..., PolicyInputs]


def load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[policies.Policy]:
    if NAME in policies.POLICIES:
        pytest.skip("the exercise is being done in this very tree")
    assert PAGE.count("kvtool/blending/policies.py") == 1
    function, entry = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    source = Path(policies.__file__).read_text()
    above, table, below = source.partition("POLICIES: Mapping")
    entries, end, rest = below.partition("\n}\n")
    assert table
    assert end
    path = tmp_path_factory.mktemp("exercise") / "policies.py"
    path.write_text(f"{above}{function}\n\n{table}{entries}\n{entry.rstrip()}{end}{rest}")
    edited = load(path, "edited_policies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(policies.POLICIES, NAME, edited.POLICIES[NAME])  # type: ignore[arg-type]
        yield edited.POLICIES[NAME]
    del sys.modules["edited_policies"]
    assert NAME not in policies.POLICIES


def test_the_page_changes_one_file() -> None:
    assert re.search(r"changes \*\*one\s+file\*\*", PAGE)
    # Nothing else in kvtool lists the policies by name: the command and the server ask this table.
    package = Path(kvtool.__file__).parent
    named = [path for path in package.rglob("*.py") if "cacheblend-gradual" in path.read_text()]
    assert named == [package / "blending/policies.py"]


def test_scores_are_the_papers(
    policy: policies.Policy, documents: Store, lively: kvtool.Model, inputs_of: MakeInputs
) -> None:
    """Attention times the norm of the value, one query head at a time."""
    inputs = inputs_of(documents, DOCUMENTS, lively, question=QUESTION)
    scores = policy.score(inputs)
    n_query_heads = inputs.attention.shape[1]
    expected = torch.zeros(len(inputs.candidates))
    for n, layer in enumerate(inputs.cache.layers):
        n_heads = layer.values.shape[1]
        for query_head in range(n_query_heads):
            values = layer.values[0, query_head * n_heads // n_query_heads]
            weight = values.norm(p=1, dim=-1) * n_heads / n_query_heads
            expected += inputs.attention[n, query_head] * weight
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    assert scores.argsort().tolist() != policies.POLICIES["prophet"].score(inputs).argsort().tolist()


def test_a_token_without_a_value_scores_nothing(
    policy: policies.Policy, documents: Store, lively: kvtool.Model, inputs_of: MakeInputs
) -> None:
    inputs = inputs_of(documents, DOCUMENTS, lively, question=QUESTION)
    first = int(policy.score(inputs).argmax())
    for layer in inputs.cache.layers:
        layer.values[:, :, first] = 0
    assert policy.score(inputs)[first] == 0


def test_a_blend_recomputes_what_it_says(documents: Store, lively: kvtool.Model) -> None:
    cache = kvtool.blend(documents, DOCUMENTS, lively, policy=NAME, recompute=0.2, question=QUESTION)
    n = sum(len(documents.read(name).token_ids) for name in DOCUMENTS)
    assert cache.recomputed == -(-n // 5)


def test_it_asks_for_the_question(documents: Store, lively: kvtool.Model) -> None:
    with pytest.raises(UsageError, match="needs the question"):
        kvtool.blend(documents, DOCUMENTS, lively, policy=NAME)


def test_the_law_of_every_policy_holds(
    documents: Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load(Path(__file__).with_name("test_policies.py"), "laws_of_policies")
    suite.test_text_that_is_not_computed_yet_tells_nothing(documents, lively, monkeypatch, NAME)
