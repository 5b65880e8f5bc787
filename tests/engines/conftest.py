"""The families of models, for this folder's tests, and one whose scores have a soft cap."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as t

import kvtool
from tests.families import WINDOW, family, model_of, parts_of, save_model, sizes, tiny, tiny_dir

__all__ = ["family", "model_of", "parts_of", "save_model", "sizes", "tiny", "tiny_dir"]


@pytest.fixture(scope="session")
def softcapped(save_model: Any, sizes: Any, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    layers = ["sliding_attention", "full_attention", "full_attention"]
    options = {"sliding_window": WINDOW, "layer_types": layers, "head_dim": 8, "attn_logit_softcapping": 2.0}
    return kvtool.load_model(save_model(tmp_path_factory.mktemp("gemma2"), t.Gemma2Config(**sizes | options)))
