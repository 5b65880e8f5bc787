"""One answer, token by token, streamed as text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TextStreamer

from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.batching.generate_many import end_tokens
from kvtool.engines.cache import DocumentCache
from kvtool.engines.once_per_model import once_per_model
from kvtool.engines.sampling import GREEDY, Sampling
from kvtool.engines.transformers import device_of
from kvtool.model.model import Model

_WARM_UP_TOKENS = 16


def generate(
    model: Model,
    token_ids: Sequence[int],
    cache: DocumentCache | None,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    streamer: TextStreamer | None = None,
) -> list[int]:
    """The tokens that follow ``token_ids``, the first of which are in ``cache``, chosen as ``sampling`` says."""
    device = device_of(model)
    ids, ends = torch.tensor([token_ids], device=device), sampling.ends(end_tokens(model))
    # transformers alone would keep the 50 likeliest tokens.
    drawing: dict[str, Any] = (
        {"do_sample": True, "top_k": 0} if sampling.temperature else {"do_sample": False}
    )
    if sampling.torch_seed is not None:
        torch.manual_seed(sampling.torch_seed)
    with cache_attention(model, cache):
        out = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id,
            streamer=streamer,
            **drawing,
            logits_processor=sampling.processors(len(token_ids), ends, device),
        )
    return [int(token) for token in out[0, len(token_ids) :]]


@once_per_model
@torch.no_grad()
def warm_up(model: Model) -> None:
    """Runs ``model``: a first run takes longer, and times must not depend on the order."""
    model.model(torch.zeros(1, _WARM_UP_TOKENS, dtype=torch.int64, device=device_of(model)))


class TextStream(TextStreamer):  # type: ignore[misc]
    """Hands text over as it is decoded.

    ``first_token_time`` is when the first token came, of ``time.monotonic``, or None before it.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text, self._has_prompt = on_text, False
        self.first_token_time: float | None = None

    def put(self, value: torch.Tensor) -> None:
        # The first call has the prompt.
        if self._has_prompt and self.first_token_time is None:
            self.first_token_time = time.monotonic()
        self._has_prompt = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)
