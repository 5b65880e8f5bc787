"""All inputs that scores, shares of layers and classes of heads need can be measured, and fit their layers."""

from __future__ import annotations

from typing import Any

import kvtool
from kvtool.codecs.prune.budgets.table import SHARES
from kvtool.codecs.prune.scores.inputs import read
from kvtool.codecs.prune.scores.table import HEADS, SCORES
from kvtool.engines.attention.collect import STATISTICS
from kvtool.engines.stage_inputs import MEASURED, measure_inputs
from tests.families import loaded

TEXT = "A store keeps what was computed. The reader asks; the cache answers."
NEEDS = frozenset[str]().union(
    *(method.needs for table in (SCORES, SHARES, HEADS) for method in table.values())
)


def test_every_need_is_measured() -> None:
    assert NEEDS <= MEASURED


def test_what_is_measured_fits_the_layers(family: kvtool.Model, parts_of: Any) -> None:
    parts = parts_of(family)
    # Latent attention has other queries than cached keys.
    latent = family.config.model_type == "deepseek_v3"
    needs = NEEDS - STATISTICS if latent else NEEDS
    inputs = measure_inputs(family, *loaded(family, parts), needs)
    assert inputs.keys() == needs
    for name, tensors in inputs.items():
        assert len(tensors) == family.text_config.num_hidden_layers
        for index, tensor in enumerate(tensors):
            assert read({name: tensor}, name, parts[-1].layer(index)).isfinite().all()
