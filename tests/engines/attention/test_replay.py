"""Importance by replay, against what transformers' own eager attention reports of the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t

import kvtool
from kvtool.engines.attention import capture
from kvtool.engines.attention.replay import OVERLAP, REQUEST, replay
from kvtool.engines.transformers import windows
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from tests.caches import eager_prefill
from tests.families import loaded

BOUND = 1e-5
"""Largest difference of an attention weight in float32."""

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2
NUMBER = "The magic number for Amber is 40719."


def reported(model: kvtool.Model, parts: Any, passage: slice = slice(None)) -> list[torch.Tensor]:
    """The largest weight of each token, from one plain forward over everything with ``output_attentions``."""
    held = torch.cat([part.token_ids for part in parts])
    own = parts[-1].token_ids
    request = torch.tensor(document_tokens(model, REQUEST))
    ids = torch.cat([held, request, own[passage]])
    _, attentions = eager_prefill(model, ids)
    replayed = slice(len(held) + len(request), None)
    segment = slice(len(held) - len(own), len(held))
    return [weights[:, replayed, segment].amax((0, 1)) for weights in attentions]


def checked(model: kvtool.Model, parts: Any) -> list[torch.Tensor]:
    before = model.model.config._attn_implementation
    importance = replay(model, *loaded(model, parts))["importance"]
    assert model.model.config._attn_implementation == before
    n_tokens = len(parts[-1].token_ids)
    for one, other, window in zip(importance, reported(model, parts), windows(model), strict=True):
        assert (one.dtype, one.device.type, one.shape) == (torch.float32, "cpu", (n_tokens,))
        if window is None:
            assert (one - other).abs().max() < BOUND
            assert other.std() > 10 * BOUND, "replayed tokens should look somewhere in particular"
    return importance  # type: ignore[return-value]


def test_importance_is_the_largest_weight_that_eager_attention_reports(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    assert len(parts) == 2
    whole = checked(family, parts)
    # In many passes and blocks, as for a long segment.
    monkeypatch.setattr(capture, "SCORES", 30 * sum(len(part.token_ids) for part in parts))
    monkeypatch.setitem(capture.BLOCK, "cpu", 5000)
    for one, other in zip(checked(family, parts), whole, strict=True):
        assert (one - other).abs().max() < BOUND


def test_soft_capped_scores(softcapped: Any, parts_of: Any) -> None:
    checked(softcapped, parts_of(softcapped))


def test_without_a_prefix(tiny: kvtool.Model, parts_of: Any) -> None:
    checked(tiny, parts_of(tiny, system=TEXT)[:1])


def test_plain_attention_is_computed_in_blocks_and_other_by_the_family(
    model_of: Any, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []
    plain = capture._softmax_attention
    monkeypatch.setattr(
        capture, "_softmax_attention", lambda q, *rest: blocks.append(q.shape[2]) or plain(q, *rest)
    )
    replay(model_of("llama"), *loaded(model_of("llama"), parts_of(model_of("llama"))))
    assert max(blocks) > capture.CHECKED_QUERIES
    blocks.clear()
    gpt_oss = model_of("gpt-oss")
    replay(gpt_oss, *loaded(gpt_oss, parts_of(gpt_oss, replace=True)))
    assert set(blocks) <= {capture.CHECKED_QUERIES}


def test_tokens_out_of_sight_get_the_mean(model_of: Any, parts_of: Any) -> None:
    model = model_of("gemma3")
    parts = parts_of(model, "ab" * 4)
    # The request alone is longer than the window, so that nothing is seen at all.
    importance = replay(model, *loaded(model, parts))["importance"]
    assert not importance[0].any()
    assert importance[1].all()


def test_a_token_that_is_copied_from_far_is_important(
    save_model: Any, sizes: Any, tmp_path: Any, parts_of: Any
) -> None:
    """A head that looks for the token it stands on finds the same one in the segment, however far it is."""
    unmoved = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 1e6}
    config = t.LlamaConfig(**sizes | {"num_hidden_layers": 1, "rope_parameters": unmoved})
    model = kvtool.load_model(save_model(tmp_path / "model", config))
    attention = model.model.model.layers[0].self_attn
    attention.k_proj.weight[:8] = attention.q_proj.weight[:8]
    attention.q_proj.weight[:8] *= 4
    attention.q_proj.weight[8:] = 0  # the other heads look everywhere alike
    # No other key is longer, so that none is nearer to its query than its own.
    letters = document_tokens(model, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    states = model.model.model.layers[0].input_layernorm(model.model.model.embed_tokens.weight)
    once = max(letters, key=lambda letter: attention.k_proj(states[letter])[:8].norm())
    parts = parts_of(model, model.tokenizer.decode([once]) + "xyxy" * 40)
    (importance,) = replay(model, *loaded(model, parts))["importance"]
    # The letter that stands there once is looked up; no copy of one that stands there eighty times is needed.
    assert importance[0] > 3 * importance[1:].max()


@pytest.mark.slow
def test_the_embedded_model_needs_a_number_that_stands_there_once(
    embedded: kvtool.Model, parts_of: Any
) -> None:
    filler = "The harbour was built twice. The sea took the first wall on a night in February. " * 12
    middle = len(filler) // 2
    parts = parts_of(embedded, f"{filler[:middle]}{NUMBER}{filler[middle:]}")
    importance = torch.stack(checked(embedded, parts)).mean(0)
    ids = parts[-1].token_ids.tolist()
    texts = [embedded.tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
    first = next(n for n, text in enumerate(texts) if "magic" in text)
    last = next(n for n, text in enumerate(texts) if "40719" in text)
    needle = importance[first : last + 1]
    others = torch.cat([importance[8:first], importance[last + 1 :]])
    assert needle.mean() > 1.5 * others.median()


def test_a_segment_that_does_not_fit_twice_is_replayed_in_passages(
    save_model: Any, sizes: Any, tmp_path: Any, parts_of: Any
) -> None:
    text = TEXT[:150]
    room = 40
    model = kvtool.load_model(save_model(tmp_path / "model", t.LlamaConfig(**sizes)))
    parts = parts_of(model, text)
    request = len(document_tokens(model, REQUEST))
    model.config.max_position_embeddings = sum(len(part.token_ids) for part in parts) + request + room
    importance = replay(model, *loaded(model, parts))["importance"]
    step = room - OVERLAP
    passages = [slice(max(0, start - OVERLAP), start + step) for start in range(0, 150, step)]
    each = [reported(model, parts, passage) for passage in passages]
    for one, *others in zip(importance, *each, strict=True):
        assert (one - torch.stack(others).amax(0)).abs().max() < BOUND
    model.config.max_position_embeddings -= room - 2 * OVERLAP + 1
    with pytest.raises(ModelError, match=r"no room to repeat a segment of 150 tokens.*--segment-tokens"):
        replay(model, *loaded(model, parts))


def test_a_segment_of_one_token(family: kvtool.Model, parts_of: Any) -> None:
    parts = parts_of(family, "a")
    assert all(layer.shape == (1,) for layer in replay(family, *loaded(family, parts))["importance"])


def test_copies_are_looked_up_as_eager_attention_reports(
    family: kvtool.Model, parts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(family)
    whole = replay(family, *loaded(family, parts))["copied"]
    for copied, truth in zip(whole, reported_copies(family, parts), strict=True):
        assert (copied.dtype, copied.shape) == (torch.float32, truth.shape)
        assert (copied - truth).abs().max() < BOUND
    # Passes of 3 tokens come for all heads at once, others by key head.
    monkeypatch.setattr(capture, "SCORES", 30 * sum(len(part.token_ids) for part in parts))
    monkeypatch.setitem(capture.BLOCK, "cpu", 5000)
    for copied, truth in zip(replay(family, *loaded(family, parts))["copied"], whole, strict=True):
        assert (copied - truth).abs().max() < BOUND


def reported_copies(model: kvtool.Model, parts: Any) -> list[torch.Tensor]:
    """The mean weights [Q, 2] of replayed tokens to their own place in the segment, and to the next."""
    held, token_ids = torch.cat([part.token_ids for part in parts]), parts[-1].token_ids
    request = torch.tensor(document_tokens(model, REQUEST))
    _, attentions = eager_prefill(model, torch.cat([held, request, token_ids]))
    start, first = len(held) - len(token_ids), len(held) + len(request)
    rows = torch.arange(first, first + len(token_ids))
    columns = torch.arange(start, start + len(token_ids))
    return [
        torch.stack([w[:, rows, columns].mean(1), w[:, rows[:-1], columns[1:]].mean(1)], 1)
        for w in attentions
    ]
