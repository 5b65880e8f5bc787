"""Each policy's scores, against the same computed in another way."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import kvtool
from kvtool import Store
from kvtool.artifact.scores import SPREAD
from kvtool.blending import policy_inputs
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Text
from kvtool.blending.policies import POLICIES, policy_of, usual_change
from kvtool.blending.policy_inputs import USUAL_QUESTION, PolicyInputs
from kvtool.engines.attention import capture
from kvtool.errors import UsageError
from kvtool.model.chat_template import prefix_of, question_tokens
from tests.caches import full_prefill, same

THREE = ["a.txt", "b.txt", "c@home.txt"]
QUESTION = "How many ships are in the harbour?"
MEASURED = {"cacheblend": "values", "cacheblend-keys": "keys"}

InputsOf = Callable[..., PolicyInputs]


def chosen(inputs: PolicyInputs, policy: str) -> list[int]:
    """The tokens that a blend would run again, ascending."""
    scores = torch.where(inputs.candidates, POLICIES[policy].score(inputs), -torch.inf)
    return scores.topk(inputs.budget).indices.sort().values.tolist()


def as_cached(inputs: PolicyInputs) -> DynamicCache:
    """A transformers cache of what is cached, copied."""
    cache = DynamicCache()
    for n, layer in enumerate(inputs.cache.layers):
        cache.update(layer.keys.clone(), layer.values.clone(), n)
    return cache


@pytest.fixture
def stand_in() -> SimpleNamespace:
    """Twenty tokens, of which 4 to 9 and 12 to 19 may be chosen, in two segments."""
    candidates = torch.zeros(20, dtype=torch.bool)
    candidates[4:10] = candidates[12:] = True
    segments = [SimpleNamespace(start=4, stop=10), SimpleNamespace(start=12, stop=20)]
    layout = SimpleNamespace(segments=segments, cached=torch.ones(20, dtype=torch.bool))
    return SimpleNamespace(candidates=candidates, layout=layout, budget=4, questions=[])


# Policies that look at no keys and values


@pytest.mark.parametrize(
    ("budget", "expected"), [(1, [4]), (2, [4, 19]), (3, [4, 12, 19]), (14, [*range(4, 10), *range(12, 20)])]
)
def test_even_is_evenly_spaced_over_the_candidates(stand_in: Any, budget: int, expected: list[int]) -> None:
    stand_in.budget = budget
    assert chosen(stand_in, "even") == expected


@pytest.mark.parametrize("budget", range(1, 15))
def test_even_chooses_as_many_as_it_may(stand_in: Any, budget: int) -> None:
    stand_in.budget = budget
    scores = POLICIES["even"].score(stand_in)
    assert int((scores > 0).sum()) == budget
    assert not scores[~stand_in.candidates].any()


@pytest.mark.parametrize("budget", [2, 4, 8])
def test_legolink_takes_as_many_first_tokens_of_each_segment(stand_in: Any, budget: int) -> None:
    stand_in.budget = budget
    n = budget // 2
    assert chosen(stand_in, "legolink") == [*range(4, 4 + n), *range(12, 12 + n)]


# CacheBlend


def test_cacheblend_scores_how_far_the_second_layer_is_from_a_full_prefills(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    """All candidates are compared after what is exact, so that a full prefill computes the same there."""
    parts = ["a.txt", Text(" and "), "b.txt", "c@home.txt"]
    full = full_prefill(lively, inputs_of(documents, parts, lively).layout.token_ids)
    for policy, side in MEASURED.items():
        inputs = inputs_of(documents, parts, lively)
        held = getattr(inputs.cache.layers[1], side)[0].clone()
        scores = POLICIES[policy].score(inputs)
        apart = (getattr(full.layers[1], side)[0] - held).square().sum((0, 2))
        expected = apart[inputs.candidates] / apart[inputs.candidates].max()
        torch.testing.assert_close(scores[inputs.candidates] - 1, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("policy", "side"), MEASURED.items())
def test_cacheblend_picks_the_token_whose_cache_is_wrong(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf, policy: str, side: str
) -> None:
    sound = inputs_of(documents, THREE, lively, budget=1)
    other = next(name for name, measured in MEASURED.items() if measured != side)
    n_tokens, expected = len(sound.layout.token_ids), chosen(sound, other)

    def wrong(token: int) -> PolicyInputs:
        inputs = inputs_of(documents, THREE, lively, budget=1)
        getattr(inputs.cache.layers[1], side)[0, :, token] += 50.0
        return inputs

    for token in (n_tokens - 1, n_tokens - 40):
        assert chosen(wrong(token), policy) == [token]
        # The layer's other side is not what is compared.
        assert chosen(wrong(token), other) == expected


def test_gradual_leaves_fewer_at_each_layer(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(documents, ["a.txt", Text("; "), "b.txt", "c@home.txt"], lively, budget=10)
    looked: list[tuple[int, Tensor]] = []
    real = PolicyInputs.refreshed

    def note(self: PolicyInputs, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        looked.append((layer, tokens))
        return real(self, layer, tokens)

    monkeypatch.setattr(PolicyInputs, "refreshed", note)
    scores = POLICIES["cacheblend-gradual"].score(inputs)
    fresh = (~inputs.layout.cached).nonzero()[:, 0].tolist()
    compared = [sorted(set(tokens.tolist()) - set(fresh)) for _, tokens in looked]
    assert [layer for layer, _ in looked] == [1, 2, 3]
    assert [len(tokens) for tokens in compared] == [int(inputs.candidates.sum()), 20, 15]
    assert all(set(fresh) <= set(tokens.tolist()) for _, tokens in looked)
    assert set(compared[2]) < set(compared[1]) < set(compared[0])
    assert set(compared[0]) == set(inputs.candidates.nonzero()[:, 0].tolist())
    # What was left out earlier scores less, whatever it scored there.
    assert scores[compared[2]].min() >= 3 > scores[compared[1]].sort().values[4]
    assert set(scores.topk(10).indices.tolist()) <= set(compared[2])


def test_gradual_compares_no_others_even_where_nothing_differs(stand_in: Any) -> None:
    looked: list[list[int]] = []

    def refreshed(layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        looked.append(tokens.tolist())
        return torch.zeros(len(tokens)), torch.zeros(len(tokens))

    stand_in.refreshed, stand_in.cache = refreshed, SimpleNamespace(layers=[None] * 9)
    POLICIES["cacheblend-gradual"].score(stand_in)
    candidates = set(stand_in.candidates.nonzero()[:, 0].tolist())
    assert [len(tokens) for tokens in looked] == [14, 8, 6]
    assert all(set(tokens) <= candidates for tokens in looked)


def test_gradual_of_a_model_with_two_layers_compares_at_the_second(stand_in: Any) -> None:
    looked: list[int] = []

    def refreshed(layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        looked.append(layer)
        return torch.zeros(len(tokens)), tokens.float()

    stand_in.refreshed, stand_in.cache = refreshed, SimpleNamespace(layers=[None, None])
    assert chosen(stand_in, "cacheblend-gradual") == [16, 17, 18, 19]
    assert looked == [1]


# Policies that look at the question's attention


def test_prophet_scores_where_the_question_looks(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    """Against the weights that transformers' eager attention reports."""
    eager = AutoModelForCausalLM.from_pretrained(lively.directory, attn_implementation="eager")
    inputs = inputs_of(documents, THREE, lively, question=QUESTION)
    n, (question,) = len(inputs.layout.token_ids), inputs.questions
    with torch.no_grad():
        out = eager(question[None], past_key_values=as_cached(inputs), output_attentions=True)
    weights = torch.stack([layer[0, :, :, :n] for layer in out.attentions]).mean(2)
    torch.testing.assert_close(inputs.attention, weights, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(POLICIES["prophet"].score(inputs), weights.mean((0, 1)), atol=1e-6, rtol=1e-4)
    # FusionRAG looks at the last layer alone. InfoFlow takes each token's mean over heads, and their norm.
    last = weights[-1].mean(0)
    torch.testing.assert_close(POLICIES["fusionrag"].score(inputs), last, atol=1e-6, rtol=1e-4)
    norms = torch.stack([layer[0, :, :, :n].mean(0).norm(dim=0) for layer in out.attentions])
    torch.testing.assert_close(inputs.attention_norm, norms, atol=1e-6, rtol=1e-4)
    # Of a model with so few layers, all.
    torch.testing.assert_close(POLICIES["infoflow"].score(inputs), norms.mean(0), atol=1e-6, rtol=1e-4)
    # The question's tokens are removed.
    assert inputs.cache.get_seq_length() == n


def test_infoflow_looks_at_its_authors_layers(stand_in: Any) -> None:
    stand_in.attention_norm = torch.arange(30.0)[:, None].expand(30, 20)
    assert POLICIES["infoflow"].score(stand_in).tolist() == [23.5] * 20
    stand_in.attention_norm = stand_in.attention_norm[:25]
    assert POLICIES["infoflow"].score(stand_in).tolist() == [22.5] * 20


def test_the_norm_is_of_all_blocks_of_queries(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inputs_of(documents, THREE, lively, question=QUESTION).attention_norm
    monkeypatch.setitem(capture.BLOCK, "cpu", 1 << 13)
    torch.testing.assert_close(inputs_of(documents, THREE, lively, question=QUESTION).attention_norm, whole)


def test_recent_tokens_look_as_in_transformers(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against eager attention of the last tokens over the keys before them, which are cached."""
    monkeypatch.setattr(policy_inputs, "RECENT", 5)
    inputs = inputs_of(documents, ["a.txt"], lively)
    # An exact document, whose last tokens the model computes as they are cached. It has no candidates of its own.
    inputs.candidates = torch.ones_like(inputs.candidates)
    eager = AutoModelForCausalLM.from_pretrained(lively.directory, attn_implementation="eager")
    cache, ids = as_cached(inputs), inputs.layout.token_ids
    cache.crop(-5)
    with torch.no_grad():
        out = eager(ids[None, -5:], past_key_values=cache, output_attentions=True)
    weights = torch.stack([layer[0] for layer in out.attentions]).mean(2)
    shared = weights / weights.mean((0, 1))[inputs.candidates].sum()
    inputs.usual_question = ids[:0]
    torch.testing.assert_close(inputs.likely_attention, shared, atol=1e-5, rtol=1e-3)
    assert shared.isfinite().all()


def test_attention_that_reaches_no_candidate_is_no_nan(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    inputs = inputs_of(documents, THREE, lively)
    inputs.candidates = torch.zeros_like(inputs.candidates)
    assert inputs.likely_attention.isfinite().all()


def test_without_a_question_a_usual_one_counts_as_much_as_recent_tokens(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    usual = question_tokens(lively, prefix_of(lively), USUAL_QUESTION)
    inputs = inputs_of(documents, THREE, lively)
    inputs.usual_question = torch.tensor(usual)
    both = inputs.likely_attention.mean((0, 1))
    recent = inputs_of(documents, THREE, lively)
    recent.usual_question = torch.tensor([], dtype=torch.int64)
    asked = inputs_of(documents, THREE, lively, question=USUAL_QUESTION).attention.mean((0, 1))
    asked /= asked[inputs.candidates].sum()
    torch.testing.assert_close(both, recent.likely_attention.mean((0, 1)) + asked)
    assert both[inputs.candidates].sum() == pytest.approx(2)


def test_drift_multiplies_attention_by_what_a_token_changes_by(
    prepared: Store, documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    """Layer by layer by the spread of caches made for blending, and by the token's place in its segment."""
    inputs = inputs_of(prepared, THREE, lively, question=QUESTION)
    plain = inputs_of(documents, THREE, lively, question=QUESTION)
    scores, without = POLICIES["drift"].score(inputs), POLICIES["drift"].score(plain)
    for segment in inputs.layout.segments[2:]:
        tokens = slice(segment.start, segment.stop)
        early = torch.tensor([n**-0.375 for n in range(1, 1 + segment.stop - segment.start)])
        spread = segment.artifact.score(SPREAD)
        assert spread is not None
        assert spread.shape == (4, len(early))
        attention = inputs.attention.mean(1)[:, tokens]
        torch.testing.assert_close(scores[tokens], (attention * spread).mean(0) * early)
        attention = plain.attention.mean((0, 1))[tokens]
        torch.testing.assert_close(without[tokens], attention * early**2)
    assert chosen(inputs, "drift") != chosen(inputs, "prophet")


def test_drift_without_a_question_guesses_it(
    documents: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    inputs = inputs_of(documents, THREE, lively)
    likely = inputs.likely_attention.mean((0, 1)) * usual_change(inputs.layout) ** 2
    torch.testing.assert_close(POLICIES["drift"].score(inputs), likely)
    given, known = (
        kvtool.blend(documents, THREE, lively, question=question) for question in (None, USUAL_QUESTION)
    )
    assert not same(given, known)


def test_what_no_segment_says_is_the_mean_of_what_others_say(
    prepared: Store, lively: kvtool.Model, inputs_of: InputsOf
) -> None:
    inputs = inputs_of(prepared, THREE, lively)
    scores = inputs.score(SPREAD)
    assert scores is not None
    known = [segment.artifact.score(SPREAD) for segment in inputs.layout.segments[2:]]
    # Layer by layer, since a score is much smaller in some.
    mean = torch.cat([score for score in known if score is not None], -1).mean(-1, keepdim=True)
    # Neither the prefix nor the first document has been scored: their caches are exact.
    unscored = scores[..., : inputs.layout.segments[2].start]
    torch.testing.assert_close(unscored, mean.expand_as(unscored))


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if policy.share is None])
def test_text_that_is_not_computed_yet_tells_nothing(
    documents: Store, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Whatever the cache's memory held before."""
    empty, caches = torch.empty, []
    options = {"separator": "\n\n", "policy": policy, "recompute": 0.1, "question": QUESTION}
    for fill in (float("nan"), 1e4, 0.0):

        def dirty(*args: Any, fill: float = fill, **options: Any) -> Tensor:
            tensor = empty(*args, **options)
            return tensor.fill_(fill) if tensor.dtype == torch.float32 else tensor

        monkeypatch.setattr(torch, "empty", dirty)
        caches.append(kvtool.blend(documents, THREE, lively, **options))
    for cache in caches:
        assert all(layer.keys.isfinite().all() for layer in cache.layers)
        assert same(cache, caches[0])


# Names


def test_an_unknown_policy_suggests_near_names(documents: Store, lively: kvtool.Model) -> None:
    near = r"^policy 'cacheblends': did you mean cacheblend or cacheblend-keys\?"
    with pytest.raises(UsageError, match=near):
        policy_of("cacheblends")
    with pytest.raises(UsageError, match=r"^policy 'xyz': expected one of none, all, even, .*, drift$"):
        kvtool.blend(documents, THREE, lively, policy="xyz")


def test_a_policy_that_asks_wants_a_question(documents: Store, lively: kvtool.Model) -> None:
    with pytest.raises(UsageError, match=r"^policy 'prophet': needs the question that is going to be asked"):
        kvtool.blend(documents, THREE, lively, policy="prophet")
    cache = kvtool.blend(documents, THREE, lively, policy="prophet", recompute=0)
    assert cache.recomputed == 0


@pytest.mark.parametrize("recompute", [-0.1, 1.1, float("nan"), "0.2", None], ids=str)
def test_a_share_is_from_0_to_1(recompute: Any) -> None:
    message = r"^recompute .*: expected a share of the documents' tokens, from 0 to 1"
    with pytest.raises(UsageError, match=message):
        BlendOptions(recompute)


@pytest.mark.parametrize(("policy", "share"), [("none", 0.0), ("all", 1.0), ("even", 0.3)])
def test_some_policies_say_the_share_themselves(policy: str, share: float) -> None:
    assert BlendOptions(0.3, policy).recompute == share
