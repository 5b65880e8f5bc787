"""Attention over grouped keys and values: to the bit that over repeated ones, and only where it belongs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtool.model.grouped_attention import NAME, attend, use_grouped_attention


def states(n_queries: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries of six heads, keys and values of two, 50 tokens."""
    return [torch.randn(1, *shape).to(dtype) for shape in ((6, n_queries, 8), (2, 50, 8), (2, 50, 12))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_queries", [1, 7])
@torch.no_grad()
def test_equals_attention_over_repeated_keys_to_the_bit(n_queries: Any, dtype: torch.dtype) -> None:
    query, key, value = states(n_queries, dtype)
    mask = torch.rand(1, 1, n_queries, 50) > 0.3
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    output, _ = attend(module, query, key, value, mask, scaling=0.4)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, repeat_kv(key, 3), repeat_kv(value, 3), attn_mask=mask, scale=0.4
    )
    assert output.shape == (1, n_queries, 6, 12)
    assert torch.equal(output, expected.transpose(1, 2))


def test_what_is_not_repeated_or_needs_gradients_is_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def own(*_: Any, **options: Any) -> tuple[None, None]:
        calls.append(options)
        return None, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", own)
    query, key, value = states(7, torch.float32)
    mask = torch.ones(1, 1, 7, 50, dtype=torch.bool)
    grouped, single = SimpleNamespace(num_key_value_groups=3), SimpleNamespace(num_key_value_groups=1)
    attend(grouped, query, key, value, mask)
    with torch.no_grad():
        attend(grouped, query, key, value, None)
        attend(single, query, key, value, mask)
        attend(grouped, query, key, value, mask, position_bias=torch.zeros(1))
        assert len(calls) == 4
        attend(grouped, query, key, value, mask)
    assert len(calls) == 4


def test_models_are_loaded_with_it_where_they_have_sdpa(family: Any) -> None:
    implementation = family.model.config._attn_implementation
    assert implementation == ("eager" if family.config.model_type == "gpt_oss" else NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family.model, "set_attn_implementation", lambda name: 1 / 0)
        # One that has it already, or eager attention, stays as it is.
        use_grouped_attention(family.model)
