"""Models whose attention cannot be captured, whatever is measured of it."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as t

import kvtool
from kvtool.artifact.measure import measure_artifact
from kvtool.engines.attention.override import NAME
from kvtool.errors import MismatchError, ModelError

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2

each_input = pytest.mark.parametrize("name", ["attention", "queries", "importance"])


@each_input
def test_a_model_that_the_artifacts_are_not_of_is_refused(name: str, model_of: Any, parts_of: Any) -> None:
    with pytest.raises(MismatchError, match="made by another model"):
        measure_artifact(model_of("qwen2"), parts_of(model_of("llama")), {name})


@each_input
def test_a_family_outside_the_attention_interface_is_refused_by_name(
    name: str, save_model: Any, sizes: Any, tmp_path: Any, parts_of: Any
) -> None:
    config = t.FalconConfig(**sizes)
    model = kvtool.load_model(save_model(tmp_path / "falcon", config))
    with pytest.raises(ModelError, match=r"falcon.*AttentionInterface.*--recipe kivi"):
        measure_artifact(model, parts_of(model), {name})
    assert model.model.config._attn_implementation != NAME


def test_nothing_is_loaded_where_nothing_can_be_measured(model_of: Any, parts_of: Any) -> None:
    assert measure_artifact(model_of("qwen2"), parts_of(model_of("llama")), {"unknown"}) == {}
