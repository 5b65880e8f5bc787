"""Sampling: logits → the next token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.engines.sampling import Sampling


@dataclass(frozen=True)
class SampledToken:
    """A token, and if they were asked for its log probability and the likeliest ``top`` (token, log probability)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One answer's sampling: the same seed and the same logits give the same tokens, whoever else is being served.

    ``prompt`` are all tokens before the answer, cached ones too. ``end_tokens`` are those that end the model's turn; ``ends``
    are those that end this answer.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], end_tokens: Collection[int]) -> None:
        self.sampling, self.ends = sampling, sampling.ends(end_tokens)
        self._processors = sampling.processors(len(prompt), self.ends)
        # A copy of the prompt for each answer, and for each token of it, only where they are looked at.
        self._token_ids = torch.tensor(prompt if sampling.reads_tokens else [], dtype=torch.int64)[None]
        self._random = torch.Generator()
        if sampling.torch_seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.torch_seed)

    def sample(self, logits: Tensor) -> SampledToken:
        """Samples from ``logits`` [V], those that follow the prompt and what was sampled before."""
        logits = logits.float()
        scores = self._processors(self._token_ids, logits[None])[0]
        token = int(scores.argmax()) if self.sampling.temperature == 0 else self._draw(scores)
        if self.sampling.reads_tokens:
            self._token_ids = torch.cat([self._token_ids, torch.tensor([[token]])], 1)
        if self.sampling.logprobs is None:
            return SampledToken(token)
        return score(logits[None], [token], self.sampling.logprobs)[0]

    def _draw(self, scores: Tensor) -> int:
        return int(scores.softmax(-1).cpu().multinomial(1, generator=self._random))


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
