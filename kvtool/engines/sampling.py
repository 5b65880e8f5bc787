"""How the tokens of an answer are chosen: settings, and what they make of a model's logits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults change nothing.

    ``temperature`` 0 is greedy. ``top_p`` keeps the likeliest tokens that together have that probability, ``top_k`` that many
    (all if it is below 1), and ``min_p`` those that have at least that share of the likeliest one's probability.

    ``presence_penalty`` is taken from the logit of each token that the answer has so far, ``frequency_penalty`` as often as it
    has it. ``repetition_penalty`` divides the logits of all tokens of prompt and answer, multiplies negative ones.
    ``logit_bias`` is added to the logits of its tokens.

    An answer ends with the model's end tokens, unless ``ignore_eos``, and with ``stop_token_ids``; with none of them before it
    has ``min_tokens``.

    ``logprobs`` is how many of the likeliest tokens are given with their log probabilities, None for not even the chosen
    one's. These are of the model itself, before all of the above, as OpenAI and vLLM have them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def ends(self, end_tokens: Collection[int]) -> frozenset[int]:
        """The tokens that end an answer, where ``end_tokens`` are the model's."""
        return frozenset(self.stop_token_ids) | frozenset(() if self.ignore_eos else end_tokens)

    @property
    def torch_seed(self) -> int | None:
        """``seed`` as torch takes it: any integer is a seed to a client, and 64 bits are what a generator takes."""
        return None if self.seed is None else self.seed % (1 << 63)

    @property
    def reads_tokens(self) -> bool:
        """Whether it looks at the tokens of prompt and answer, and not at the logits alone."""
        return bool(
            self.min_tokens or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        )

    def processors(
        self, prompt_tokens: int, ends: Collection[int], device: torch.device | str = "cpu"
    ) -> LogitsProcessorList:
        """What is done to the logits after a prompt of ``prompt_tokens`` before a token is chosen, in vLLM's order.

        ``ends`` are the tokens that end the answer.
        """
        steps: list[LogitsProcessor] = []
        if self.logit_bias:
            steps.append(LogitBias(self.logit_bias, device))
        if self.min_tokens and ends:
            steps.append(MinTokens(prompt_tokens + self.min_tokens, ends, device))
        if self.repetition_penalty != 1:
            steps.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.frequency_penalty or self.presence_penalty:
            steps.append(AnswerPenalties(prompt_tokens, self.frequency_penalty, self.presence_penalty))
        if self.temperature:
            steps += [Temperature(self.temperature), *self._limits()]
        return LogitsProcessorList(steps)

    def _limits(self) -> list[Any]:
        return [
            *([MinPLogitsWarper(self.min_p)] if self.min_p else ()),
            *([TopKLogitsWarper(self.top_k)] if self.top_k > 0 else ()),
            *([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else ()),
        ]


GREEDY = Sampling(temperature=0.0)


class LogitBias(LogitsProcessor):  # type: ignore[misc]
    """Adds to each token's logit its ``bias``; transformers' own is for sequences, and takes long to make of thousands."""

    def __init__(self, bias: Mapping[int, float], device: torch.device | str) -> None:
        self.tokens = torch.tensor(list(bias), device=device)
        self.values = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self.tokens, self.values[None].to(scores.dtype))


class MinTokens(LogitsProcessor):  # type: ignore[misc]
    """No ``ends`` before there are ``length`` tokens; transformers' own costs as much for every token after them."""

    def __init__(self, length: int, ends: Collection[int], device: torch.device | str) -> None:
        self.length, self.ends = length, torch.tensor(sorted(ends), device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores if input_ids.shape[1] >= self.length else scores.index_fill(1, self.ends, -math.inf)


class AnswerPenalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties: ``presence`` for each token that the answer has, ``frequency`` as often as it has it."""

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self.prompt_tokens, self.frequency, self.presence = prompt_tokens, frequency, presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answer = input_ids[:, self.prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class Temperature(LogitsProcessor):  # type: ignore[misc]
    """Division by ``temperature``, from the largest down and in float64: the smallest there is makes no infinity of it."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return (scores.double() - scores.amax(-1, keepdim=True)) / self.temperature
