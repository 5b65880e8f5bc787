"""Latent attention (MLA): the latent and the rotated part lie in one row, its channels in SGLang's order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.rotary_embedding import get_rope
from transformers import AutoConfig
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from kvtool.connectors.sglang.engine import interleaved
from tests.connectors.sglang.pools import token_ids
from tests.engines.sglang.servers import PAGE, Served
from tests.engines.sglang.stores import LATENT
from tests.engines.sglang.test_storage import name_of

Serve = Callable[..., Served]
SIZE, TOKENS = LATENT["qk_rope_head_dim"], 24


def rotated_by_sglang(states: torch.Tensor) -> torch.Tensor:
    """[T, D], as ``deepseek_v2.py`` of SGLang has it rotated: ``rope_interleave`` is true."""
    rope = get_rope(
        SIZE, rotary_dim=SIZE, max_position=512, base=10000, is_neox_style=False, dtype=torch.float32
    )
    _, keys = rope.forward_native(torch.arange(TOKENS), states.clone(), states.clone())
    return keys


def test_channels_are_in_the_order_that_sglang_rotates_them_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU, SGLang would use a kernel of vLLM's where we ask for its own, plain one.
    kernels = ModuleType("vllm._custom_ops")
    kernels.rotary_embedding = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", kernels)
    states = torch.randn(TOKENS, SIZE)
    expected = rotated_by_sglang(states)
    batch = states[None, None]
    config = AutoConfig.from_pretrained(folder / "deepseek_v3")
    cos, sin = v3.DeepseekV3RotaryEmbedding(config)(batch, torch.arange(TOKENS)[None])
    _, keys = v3.apply_rotary_pos_emb_interleave(batch, batch, cos, sin)
    torch.testing.assert_close(interleaved(keys[0, 0]), expected, rtol=1e-5, atol=1e-5)
    assert (keys[0, 0] - expected).abs().max() > 0.1
    config = AutoConfig.from_pretrained(folder / "deepseek_v2")
    angles = v2.DeepseekV2RotaryEmbedding(config)(batch, torch.arange(TOKENS)[None])
    _, keys = v2.apply_rotary_emb(batch, batch, angles)
    torch.testing.assert_close(keys[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2"])
@pytest.mark.parametrize("tp", [(0, 1), (1, 2)])
def test_the_pool_holds_latent_and_rotated_part(
    serve: Serve, name: str, layout: str, zero_copy: bool, tp: tuple[int, int]
) -> None:
    served = serve(name, layout=layout, tp=tp)
    document = name_of(served.store)
    ids = token_ids(served.store, document)
    n_pages = len(ids) // PAGE
    assert served.fetch(ids, zero_copy=zero_copy) == (n_pages, n_pages)
    turn = interleaved if name == "deepseek_v3" else torch.nn.Identity()
    parts = [part.kv() for part in served.store.parts(document)]
    rows = torch.stack(
        [
            torch.cat([torch.cat([kv.layers[n].keys[0], turn(kv.layers[n].values[0])], -1) for kv in parts])
            for n in range(2)
        ]
    )
    for n in range(n_pages):
        page = rows[:, n * PAGE : (n + 1) * PAGE]
        expected = page.transpose(0, 1) if layout == "page_first" else page
        assert torch.equal(served.pool.get_data_page(n * PAGE), expected.flatten())
