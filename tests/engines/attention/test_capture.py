"""What cannot be watched, whatever is made of it."""

from __future__ import annotations

import pytest
import transformers as t

import kvtool
from kvtool.engines.attention.probe import observe
from kvtool.engines.attention.replay import replay
from kvtool.errors import MismatchError, ModelError

TEXT = "A store keeps what was computed. The reader asks; the cache answers, from keys and values. " * 2

each_measure = pytest.mark.parametrize("measure", [observe, replay])


@each_measure
def test_a_model_that_the_artifacts_are_not_of_is_refused(measure, model_of, parts_of):
    with pytest.raises(MismatchError, match="made by another model"):
        measure(model_of("qwen2"), parts_of(model_of("llama")))


@each_measure
def test_a_family_outside_the_attention_interface_is_refused_by_name(
    measure, save_model, sizes, tmp_path, parts_of
):
    config = t.BloomConfig(**sizes, n_layer=2, n_head=4)
    model = kvtool.load_model(save_model(tmp_path / "bloom", config))
    with pytest.raises(ModelError, match=r"bloom.*AttentionInterface.*--recipe kivi"):
        measure(model, parts_of(model))
    assert model.model.config._attn_implementation != "kvtool-watched"
