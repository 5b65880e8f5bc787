"""Latent attention (MLA): the latent and the rotated part lie in one row, its channels in SGLang's order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("sglang")


from kvtool.connectors.sglang.engine import interleaved
from tests.connectors.sglang.pools import token_ids
from tests.engines.sglang.servers import PAGE, Served
from tests.engines.sglang.test_storage import name_of

Serve = Callable[..., Served]


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
