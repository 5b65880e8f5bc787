"""Latent attention (MLA): the latent and the rotated part lie in one row, its channels in SGLang's order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("sglang")


from kvtool.artifact.read import Artifact
from tests.connectors.sglang.pools import token_ids
from tests.connectors.sglang.servers import PAGE, Served
from tests.connectors.sglang.test_storage import name_of
from tests.connectors.shown import shown

Serve = Callable[..., Served]


def latent_rows(parts: list[Artifact], layer: int) -> torch.Tensor:
    """Latent and rotated part of each token; of that, the halves of version 3 are dealt out to pairs."""
    sides = [part.layer(layer) for part in parts]
    is_halves = parts[0].meta["rope"]["value_rotations"][0]["layout"] == "half"
    latent, rotated = (torch.cat([getattr(side, name)[0] for side in sides]) for name in ("keys", "values"))
    if is_halves:
        rotated = rotated.view(len(rotated), 2, -1).transpose(1, 2).reshape(len(rotated), -1)
    return torch.cat([latent, rotated], -1)


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
    rows = torch.stack([latent_rows(served.store.parts(document), n) for n in range(2)])
    for n in range(n_pages):
        page = rows[:, n * PAGE : (n + 1) * PAGE]
        expected = page.transpose(0, 1) if layout == "page_first" else page
        assert torch.equal(served.pool.get_data_page(n * PAGE), expected.flatten())
    title = {"deepseek_v3": "DeepSeek V3 (latent attention)", "deepseek_v2": "DeepSeek V2 (latent attention)"}
    shown("sglang", title[name], "raw", ranks=tp[1])
