"""Matrix products in 16 bits, on machines that multiply them faster."""

from __future__ import annotations

from functools import cache

import torch

FROM = 1 << 24
"""Multiplications from which on 16 bits are worth rounding for."""

EPS = torch.finfo(torch.bfloat16).eps
"""Relative error of a factor and of the product, to be expected with ``factors``."""


@cache
def _fast() -> bool:
    # Without these instructions torch takes longer over bfloat16 than over float32.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def factors(multiplications: int, device: torch.device) -> torch.dtype:
    """The dtype for the factors of a product of that size: bfloat16 where that pays, else float32."""
    pays = multiplications >= FROM and (device.type != "cpu" or _fast())
    return torch.bfloat16 if pays else torch.float32
