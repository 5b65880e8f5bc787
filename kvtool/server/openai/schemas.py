"""Requests as OpenAI's API has them. Fields that it does not have are kvtool's, or are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
)
from pydantic_core import PydanticCustomError

from kvtool import limits
from kvtool.blending.blend import RECOMPUTE
from kvtool.blending.policies import DEFAULT
from kvtool.engines.sampling import Sampling
from kvtool.server.http.errors import ApiError
from kvtool.server.openai.messages import Body, ChatMessage, Nothing
from kvtool.server.runtime.request import (
    ConversationPrompt,
    HeldDocument,
    Prompt,
    Request,
    TextPrompt,
    TokenPrompt,
)

Penalty = Annotated[StrictFloat, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[StrictFloat, Field(ge=-100, le=100, allow_inf_nan=False)]

_TOKEN = "^(0|[1-9][0-9]{0,8})$"


def _token_id(name: str) -> str:
    if not re.match(_TOKEN, name):
        raise PydanticCustomError("token_id", 'expected a token\'s id as a string, such as "40"')
    return name


TokenId = Annotated[str, Field(pattern=_TOKEN), BeforeValidator(_token_id)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=limits.STOP_CHARACTERS)]

_Item = TypeVar("_Item")
_List = Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
"""A list that is given up at its first mistake: each mistake is an object, and lists may be long."""


def _prompt_kind(prompt: Any) -> str | None:
    """Of which kind a prompt is, by its first item: errors are those of this kind alone."""
    if isinstance(prompt, list):
        first = prompt[0] if prompt else 0
        kinds = {"list[str]": str, "list[list[int]]": list}
        return next((kind for kind, item in kinds.items() if isinstance(first, item)), "list[int]")
    return "str" if isinstance(prompt, str) else None


_Prompts = Annotated[
    Annotated[StrictStr, Tag("str")]
    | Annotated[_List[StrictInt], Tag("list[int]")]
    | Annotated[_List[StrictStr], Tag("list[str]")]
    | Annotated[_List[_List[StrictInt]], Tag("list[list[int]]")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="expected a text, token ids, or a list of either",
    ),
]


class StreamOptions(BaseModel):
    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class _Request(Body):
    """The fields that both APIs have; those from ``top_k`` on are vLLM's, those from ``documents`` on kvtool's."""

    model: StrictStr
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: StrictInt | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[StrictFloat, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=limits.CHOICES)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=limits.LOGIT_BIASES)] | None = None
    user: StrictStr | None = None

    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[StrictFloat, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    ignore_eos: StrictBool | None = None
    stop_token_ids: Annotated[list[StrictInt], Field(max_length=limits.STOP_TOKENS)] | None = None

    documents: Annotated[list[StrictStr], Field(min_length=1, max_length=limits.DOCUMENTS)] | None = None
    cached_content: StrictStr | None = None
    recompute: Annotated[StrictFloat, Field(ge=0, le=1, allow_inf_nan=False)] = RECOMPUTE
    policy: StrictStr = DEFAULT
    use_cache: StrictBool = True

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_requests(self, documents: Sequence[HeldDocument] | None) -> list[Request]:
        """One for each prompt. Raises ``ApiError`` for fields that do not go together."""
        # Made once: biases are many, and so are prompts and choices.
        samplings = self._samplings()
        return [self._request(prompt, samplings, documents) for prompt in self.to_prompts()]

    def _request(
        self, prompt: Prompt, samplings: Sequence[Sampling], documents: Sequence[HeldDocument] | None
    ) -> Request:
        return Request(
            prompt=prompt,
            samplings=samplings,
            max_tokens=self.max_answer_tokens,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            documents=documents,
            recompute=self.recompute,
            policy=self.policy,
            use_cache=self.use_cache,
        )

    def to_prompts(self) -> list[Prompt]:
        raise NotImplementedError

    @property
    def max_answer_tokens(self) -> int | None:
        """An answer's length at most; None where the request does not say it."""
        raise NotImplementedError

    @property
    def n_logprobs(self) -> int | None:
        """How many of the likeliest tokens are given; None where not even the chosen one's log probability is."""
        raise NotImplementedError

    def _samplings(self) -> list[Sampling]:
        """How the tokens of each choice are chosen. Choices of one seed differ from each other, and are the same each time."""
        first, choices = self._sampling(), range(self.n or 1)
        if self.seed is None:
            return [first for _ in choices]
        return [replace(first, seed=self.seed + choice) for choice in choices]

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            logprobs=self.n_logprobs,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )


class CompletionRequest(_Request):
    """A request for the continuation of ``prompt``: a text, token ids, or a list of either.

    ``parse_special`` is llama.cpp's name: with it, special tokens that the text spells out are commands. vLLM has none, and
    its ``add_special_tokens`` means those that a tokenizer puts first.

    ``echo`` gives the prompt back before its continuation, and with ``logprobs`` those of its tokens. Then ``max_tokens`` may
    be 0.
    """

    prompt: _Prompts
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: StrictBool | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.STOPS)] | None = None
    best_of: Literal[1] | None = None
    suffix: Nothing = None
    parse_special: StrictBool | None = None

    def to_requests(self, documents: Sequence[HeldDocument] | None) -> list[Request]:
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(
                400, "max_tokens: 0 is for prompts with echo; expected at least 1", param="max_tokens"
            )
        requests = super().to_requests(documents)
        n_answers = len(requests) * (self.n or 1)
        if n_answers > limits.ANSWERS:
            message = f"prompt: {n_answers:,} answers to its prompts, n to each; expected at most {limits.ANSWERS:,}"
            raise ApiError(400, message, param="prompt")
        return [replace(request, echo=bool(self.echo)) for request in requests]

    def to_prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self._prompt(self.prompt, "prompt")]
        return [self._prompt(prompt, f"prompt.{n}") for n, prompt in enumerate(self.prompt)]

    def _prompt(self, prompt: Any, field: str) -> Prompt:
        if isinstance(prompt, str):
            return TextPrompt(prompt, bool(self.parse_special), field)
        return TokenPrompt(prompt, field)

    @property
    def n_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def max_answer_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens


class TextFormat(Body):
    type: Literal["text"]


class ChatRequest(_Request):
    """A request for the next message. The fields after ``safety_identifier`` may be there, and change no answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=limits.MESSAGES)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[StrictStr, JsonValue] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, StrictStr] | None = None
    prompt_cache_key: StrictStr | None = None
    safety_identifier: StrictStr | None = None

    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: StrictBool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    tools: Nothing = None
    functions: Nothing = None
    audio: Nothing = None
    moderation: Nothing = None
    prediction: Nothing = None
    prompt_cache_options: Nothing = None
    prompt_cache_retention: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None
    web_search_options: Nothing = None

    def to_prompts(self) -> list[Prompt]:
        messages = [message.message for message in self.messages]
        return [ConversationPrompt(messages, self.chat_template_kwargs or {})]

    @property
    def n_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


AnyRequest: TypeAlias = ChatRequest | CompletionRequest
