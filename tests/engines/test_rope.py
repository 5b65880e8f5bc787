"""Rotations that were found: undone and applied at another place, they give what a prefill there gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers as t

import kvtool
from kvtool.codecs.rope import Rope, ropes
from kvtool.engines import prefiller, rope
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import rope_description
from kvtool.kernels import dispatch

BOUND = 1e-4
SHIFT = 37
IDS = list(range(40, 64))

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 8.0, 8.0],
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
NO_POSITIONS = ["sliding_attention", "full_attention", "sliding_attention"]


def keys_at(model: kvtool.Model, start: int) -> list[torch.Tensor]:
    """Each layer's keys [H, T, D] of ``IDS`` alone, from position ``start`` on."""
    cache = DocumentCache(model.text_config.num_hidden_layers)
    positions = torch.arange(start, start + len(IDS))[None]
    with torch.no_grad():
        model.model.base_model(torch.tensor([IDS]), position_ids=positions, past_key_values=cache)
    return [layer.keys[0].clone() for layer in cache.layers]


def turn(keys: torch.Tensor, how: Rope, start: int, *, undo: bool) -> torch.Tensor:
    positions = torch.arange(start, start + keys.shape[1])
    cos, sin = dispatch.angles(positions, torch.tensor(how.inv_freq), how.scaling, undo=undo)
    turned = keys.clone()
    part = turned[..., how.start :]
    dispatch.rotate(part, cos, sin, how.layout, part)
    return turned


def check_shift(model: kvtool.Model) -> tuple[Rope, ...]:
    """Every layer: without absolute positions, what a token attends to does not depend on where both are."""
    found = ropes(rope_description(model), model.text_config.num_hidden_layers)
    assert found, "no rotations were found"
    for here, there, how in zip(keys_at(model, 3), keys_at(model, 3 + SHIFT), found, strict=True):
        bare = turn(here, how, 3, undo=True)
        assert (turn(bare, how, 3 + SHIFT, undo=False) - there).norm() < BOUND * there.norm()
        assert (turn(bare, how, 3, undo=False) - here).norm() < 1e-6 * here.norm()
    return found


def test_a_found_rotation_moves_keys_to_where_a_prefill_puts_them(family: kvtool.Model) -> None:
    check_shift(family)


def test_layers_have_their_own_frequencies(model_of: Any) -> None:
    sliding, full, again = check_shift(model_of("gemma3"))
    assert sliding == again != full


def test_partial_rotation_scaling_and_latents(model_of: Any) -> None:
    assert {2 * len(how.inv_freq) for how in check_shift(model_of("gpt-neox"))} == {2}
    assert all(how.scaling > 1.3 for how in check_shift(model_of("gpt-oss")))
    # transformers keeps the latent as keys; the rotated part lies among the values.
    assert check_shift(model_of("deepseek-v3")) == (Rope(()),) * 3


def test_neighbouring_channels_and_layers_without_positions(
    save_model: Any, sizes: Any, tmp_path: Any
) -> None:
    config = t.Cohere2Config(**sizes, sliding_window=16, layer_types=NO_POSITIONS)
    turned, bare, _ = check_shift(kvtool.load_model(save_model(tmp_path / "cohere2", config)))
    assert turned.layout == "interleaved"
    assert bare == Rope(())


@pytest.mark.parametrize(("parameters", "up_to"), [(DYNAMIC, 127), (LONG, 64)])
def test_frequencies_that_depend_on_the_length_hold_up_to_there(
    parameters: Any, up_to: Any, save_model: Any, sizes: Any, tmp_path: Any
) -> None:
    config = t.LlamaConfig(**sizes | {"rope_parameters": parameters, "max_position_embeddings": 128})
    model = kvtool.load_model(save_model(tmp_path / "model", config))
    # A forward over the long context leaves its own frequencies in the rotary module.
    keys_at(model, 2 * up_to)
    assert {how.up_to for how in check_shift(model)} == {up_to}


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("start", [0, 8])
def test_layout_and_offset_are_found(
    layout: Any, start: Any, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    frequencies = ropes(rope_description(tiny), 3)[0].inv_freq

    def keys(_: Any, side: Any, positions: Any) -> Any:
        plain = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(1))
        plain = plain.expand(len(positions), 2, 16)
        return [turn_at(plain, positions, Rope(frequencies, 1.0, layout, start))]

    monkeypatch.setattr(rope, "_states", keys)
    (found,) = rope.describe_rotations(tiny)["rotations"]
    assert (found["layout"], found["start"]) == (layout, start)


def turn_at(plain: torch.Tensor, positions: torch.Tensor, how: Rope) -> torch.Tensor:
    """[N, H, D], the n-th of them at ``positions[n]``, in complex numbers: not by the kernel under test."""
    size, turned = 2 * len(how.inv_freq), plain.clone()
    part = plain[..., how.start : how.start + size]
    pairs = part.unflatten(-1, (2, -1)).mT if how.layout == "half" else part.unflatten(-1, (-1, 2))
    angles = positions[:, None, None] * torch.tensor(how.inv_freq)
    turns = torch.polar(torch.ones(()), angles)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
    turned[..., how.start : how.start + size] = (pairs.mT if how.layout == "half" else pairs).flatten(-2)
    return turned


def test_keys_that_nothing_explains_have_no_rotations(
    tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = [torch.randn(3, 2, 8) for _ in range(3)]
    monkeypatch.setattr(rope, "_states", lambda *_: random)
    assert rope.describe_rotations(tiny) == {}
    # A token of zeros would be explained by anything.
    monkeypatch.setattr(rope, "_states", lambda *_: [torch.zeros(3, 2, 8)] * 3)
    assert rope.describe_rotations(tiny) == {}


def test_models_without_rotary_embeddings_have_none(save_model: Any, sizes: Any, tmp_path: Any) -> None:
    config = t.GPT2Config()
    for field, size in sizes.items():
        setattr(config, field, size)
    assert rope.describe_rotations(kvtool.load_model(save_model(tmp_path / "gpt2", config))) == {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_find_the_same(dtype: torch.dtype, model_of: Any) -> None:
    for name in ("gemma3", "gpt-neox", "llama3-rope"):
        model = model_of(name)
        other = kvtool.load_model(model.directory, dtype=dtype)
        assert rope.describe_rotations(other) == rope.describe_rotations(model)


def test_a_prefilled_kv_says_how_and_the_identity_does_not(family: kvtool.Model) -> None:
    kv = prefiller.Prefiller(family, []).one(IDS)
    stored = ropes(json.loads(json.dumps(kv.rope)), len(kv.layers))
    assert stored == ropes(rope_description(family), len(kv.layers)) != ()
    assert kv.rope == {**family.identity.rope, **rope.describe_rotations(family)}
    assert not {"rotations", "rotation_of_layer"} & family.identity.rope.keys()
