"""How pages lie in SGLang's host memory, and what of a cache a process of SGLang holds. Needs no sglang.

What is relied on of its host pools (``sglang.srt.mem_cache.pool_host``, 0.5.23, ``MHATokenToKVPoolHost`` and
``MLATokenToKVPoolHost``): the attributes named here, and ``get_data_page(index, flat=False)``, which gives a view of the page
that begins at ``index``. A flat page has the same elements in the same order. Keys are rotated when they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvtool.errors import MismatchError

_Order = Callable[[Tensor], Tensor]

_ATTENTION: Mapping[str, _Order] = {
    "layer_first": lambda page: page,
    "page_first": lambda page: page.transpose(1, 2),
    "page_first_direct": lambda page: page[:, 0],
    "page_head": lambda page: page[:, 0].permute(0, 3, 2, 1, 4),
}
"""A page as SGLang has it → [2, L, T, H, D], keys and values."""

_LATENT: Mapping[str, _Order] = {
    "layer_first": lambda page: page[None],
    "page_first": lambda page: page.transpose(0, 1)[None],
    "page_first_direct": lambda page: page,
}
"""A page of latent attention (MLA) → [1, L, T, 1, C], latent and rotated part in one."""


@dataclass(frozen=True)
class Shard:
    """The part of every page that one process holds.

    Of attention's tensor parallelism it is ``rank`` of ``n_ranks``. ``is_last``: its layers are the model's last.
    """

    rank: int = 0
    n_ranks: int = 1
    is_last: bool = True


@dataclass(frozen=True)
class Pages:
    """The pages of one host pool. A page here is [sides, layers, tokens, heads, channels], whatever the pool's layout."""

    pool: Any
    shard: Shard

    @classmethod
    def of(cls, pool: Any, shard: Shard) -> Pages:
        """Raises ``MismatchError``, naming the field, for a pool whose pages are of another kind."""
        pages = cls(pool, shard)
        layouts = _LATENT if pages.is_latent else _ATTENTION
        layout, name = getattr(pool, "layout", None), type(pool).__name__
        if layout not in layouts:
            raise MismatchError(name, f"has layout {layout}, expected {', '.join(layouts)}")
        for field, expected in (
            ("dcp_size", 1),
            ("storage_format_tag", None),
            ("_layer_shard_enabled", False),
        ):
            if (value := getattr(pool, field, expected)) != expected:
                raise MismatchError(name, f"has {field} {value}, expected {expected}")
        if getattr(pool, "kv_buffer", None) is None:
            raise MismatchError(name, "holds no keys and values of its own")
        if pool.layer_num != len(pages.layers):
            reason = f"has {pool.layer_num} layers, of which {len(pages.layers)} are the model's own"
            raise MismatchError(name, reason)
        if not pages.is_latent and pool.v_head_dim != pool.head_dim:
            reason = f"has values of {pool.v_head_dim} channels and keys of {pool.head_dim}"
            raise MismatchError(name, reason)
        return pages

    @property
    def is_latent(self) -> bool:
        """Whether it is of latent attention (MLA)."""
        return hasattr(self.pool, "kv_lora_rank")

    @property
    def layers(self) -> range:
        """The model's layers that the pool holds."""
        start = int(self.pool.start_layer)
        return range(start, start + int(self.pool.target_layer_num))

    @property
    def n_tokens(self) -> int:
        """Tokens of a page."""
        return int(self.pool.page_size)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sides, heads and channels of a page."""
        if self.is_latent:
            return 1, 1, int(self.pool.kv_cache_dim)
        return 2, int(self.pool.head_num), int(self.pool.head_dim)

    def at(self, index: int) -> Tensor:
        """A view of the page that begins at token ``index`` of the pool."""
        return self._ordered(self.pool.get_data_page(index, flat=False))

    def flat(self, page: Tensor) -> Tensor:
        """A view of a flat page, as SGLang puts it into the pool."""
        return self._ordered(page.view(self.pool.get_data_page(0, flat=False).shape))

    def heads(self, n_heads: int) -> range:
        """The heads of the model's that the pool holds. Raises ``MismatchError`` if the model's cannot be shared out so.

        Where there are more processes than heads, several hold the same one.
        """
        held = int(self.pool.head_num)
        copies, odd = divmod(held * self.shard.n_ranks, n_heads)
        if odd or copies < 1 or (copies > 1 and held > 1):
            reason = f"holds {held} heads in each of {self.shard.n_ranks} processes, the cache has {n_heads}"
            raise MismatchError(type(self.pool).__name__, reason)
        first = self.shard.rank // copies * held
        return range(first, first + held)

    def _ordered(self, page: Tensor) -> Tensor:
        return (_LATENT if self.is_latent else _ATTENTION)[self.pool.layout](page)
