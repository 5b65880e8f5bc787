"""Capabilities are found once for each model, and forgotten with it."""

from __future__ import annotations

import gc

import pytest

import kvtool
from kvtool.codecs.rope import ropes
from kvtool.engines import capabilities
from kvtool.engines.capabilities import has_softmax_attention, key_rotations, rope_description


def test_each_model_is_run_once(tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = (kvtool.load_model(tiny.directory) for _ in range(2))
    found = [(rope_description(m), key_rotations(m), has_softmax_attention(m)) for m in (model, other)]
    assert found[0] == found[1]
    # From now on, loading a model's weights would fail.
    monkeypatch.setattr(kvtool.Model, "model", property(lambda self: 1 / 0))
    again = rope_description(model), key_rotations(model), has_softmax_attention(model)
    assert all(one is another for one, another in zip(again, found[0], strict=True))
    with pytest.raises(ZeroDivisionError):
        key_rotations(kvtool.load_model(tiny.directory))


def test_what_was_found_goes_with_the_model(tiny: kvtool.Model) -> None:
    contents = [cell.cell_contents for cell in capabilities.key_rotations.__closure__]
    (known,) = [value for value in contents if not callable(value)]
    before = len(known)
    model = kvtool.load_model(tiny.directory)
    key_rotations(model)
    assert len(known) == before + 1
    del model
    gc.collect()
    assert len(known) <= before


def test_keys_of_the_description_are_those_of_the_rotations(family: kvtool.Model) -> None:
    description, rotations = rope_description(family), key_rotations(family)
    assert rotations is not None
    assert ropes(description, family.text_config.num_hidden_layers) == rotations.keys
