"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_p`` keeps the likeliest tokens that together have that probability.

    ``logprobs`` is how many of the likeliest tokens are told with their log probabilities, None for not even the chosen
    one's. These are of the model itself, before temperature and ``top_p``, as OpenAI has them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Picked:
    """``top`` are (token, log probability), likeliest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One request's choices: the same seed and the same logits give the same tokens, whoever else is being served."""

    def __init__(self, how: Sampling) -> None:
        self.how = how
        self._random = torch.Generator()
        if how.seed is None:
            self._random.seed()
        else:
            # Any integer is a seed to a client, and 64 bits are what the generator takes.
            self._random.manual_seed(how.seed % (1 << 63))

    def pick(self, logits: Tensor) -> Picked:
        """From ``logits`` [V]."""
        logits = logits.float()
        token = int(logits.argmax()) if self.how.temperature == 0 else self._draw(logits)
        if self.how.logprobs is None:
            return Picked(token)
        known = logits.log_softmax(-1)
        best = known.topk(min(self.how.logprobs, len(known)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Picked(token, float(known[token]), tuple(top))

    def _draw(self, logits: Tensor) -> int:
        # From the largest down and in float64, so that the smallest temperature there is makes no infinity of it.
        scaled = (logits.double() - logits.max()) / self.how.temperature
        chances, tokens = scaled.softmax(-1).sort(descending=True)
        if self.how.top_p < 1:
            # The token that crosses the threshold is in, and the likeliest always.
            chances[1:][(chances.cumsum(-1) - chances)[1:] >= self.how.top_p] = 0
        return int(tokens[chances.cpu().multinomial(1, generator=self._random)])
