"""Sampling: logits → the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    ``temperature`` 0 is greedy. ``top_p`` keeps the likeliest tokens that together have that probability.

    ``logprobs`` is how many of the likeliest tokens are given with their log probabilities, None for not even the chosen
    one's. These are of the model itself, before temperature and ``top_p``, as OpenAI has them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class SampledToken:
    """A token, and if they were asked for its log probability and the likeliest ``top`` (token, log probability)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One answer's sampling: the same seed and the same logits give the same tokens, whoever else is being served."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            # Any integer is a seed to a client, and 64 bits are what the generator takes.
            self._random.manual_seed(sampling.seed % (1 << 63))

    def sample(self, logits: Tensor) -> SampledToken:
        """Samples from ``logits`` [V]."""
        logits = logits.float()
        token = int(logits.argmax()) if self.sampling.temperature == 0 else self._draw(logits)
        if self.sampling.logprobs is None:
            return SampledToken(token)
        return score(logits[None], [token], self.sampling.logprobs)[0]

    def _draw(self, logits: Tensor) -> int:
        # From the largest down and in float64, so that the smallest temperature there is makes no infinity of it.
        scaled = (logits.double() - logits.max()) / self.sampling.temperature
        probabilities, tokens = scaled.softmax(-1).sort(descending=True)
        if self.sampling.top_p < 1:
            # The token that crosses the threshold is in, and the likeliest always.
            before = probabilities.cumsum(-1) - probabilities
            probabilities[1:][before[1:] >= self.sampling.top_p] = 0
        return int(tokens[probabilities.cpu().multinomial(1, generator=self._random)])


_ROWS = 32
"""Tokens that are scored at a time."""


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[SampledToken]:
    """``tokens`` [S] with their log probabilities by ``logits`` [S, V], and the ``top`` likeliest in the place of each."""
    scored = []
    # A few at a time, so that there is no second tensor as large as the logits.
    for start in range(0, len(tokens), _ROWS):
        chosen = tokens[start : start + _ROWS]
        logprobs = logits[start : start + len(chosen)].float().log_softmax(-1)
        own = logprobs.gather(1, torch.tensor(chosen, device=logprobs.device)[:, None])[:, 0]
        likeliest = logprobs.topk(min(top, logprobs.shape[1]))
        rows = zip(chosen, own.tolist(), likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        scored += [
            SampledToken(token, logprob, tuple(zip(ids, values, strict=True)))
            for token, logprob, ids, values in rows
        ]
    return scored
