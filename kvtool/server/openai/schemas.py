"""What clients send, as OpenAI's API has it; fields that it does not have are ours or are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from kvtool import limits
from kvtool.blending.blend import RECOMPUTE
from kvtool.blending.policies import DEFAULT
from kvtool.model.conversation import Message
from kvtool.server.runtime.sampling import Sampling

Number = StrictInt | StrictFloat
Zero = Annotated[Number, Field(ge=0, le=0)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=limits.STOP_CHARACTERS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: StrictStr
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: StrictInt | None = None
    temperature: Annotated[Number, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=limits.CHOICES)] | None = None
    user: StrictStr | None = None

    documents: Annotated[list[StrictStr], Field(min_length=1, max_length=limits.DOCUMENTS)] | None = None
    cached_content: StrictStr | None = None
    recompute: Annotated[Number, Field(ge=0, le=1, allow_inf_nan=False)] = RECOMPUTE
    policy: StrictStr = DEFAULT
    use_cache: StrictBool = True

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(self, choice: int, logprobs: int | None) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else float(self.temperature),
            top_p=1.0 if self.top_p is None else float(self.top_p),
            # Choices of one seed are others than one another, and the same each time.
            seed=None if self.seed is None else self.seed + choice,
            logprobs=logprobs,
        )


class StreamOptions(BaseModel):
    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class CompletionRequest(_Request):
    """``prompt`` is text or token ids; several prompts are several requests to a client, and one each to us."""

    prompt: StrictStr | Annotated[list[StrictInt], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    def sampling(self, choice: int) -> Sampling:
        return self._sampling(choice, self.logprobs)

    @property
    def most(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: StrictStr


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart]
    name: StrictStr | None = None

    @property
    def message(self) -> Message:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Request):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=limits.MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, StrictStr] | None = None

    def sampling(self, choice: int) -> Sampling:
        return self._sampling(choice, (self.top_logprobs or 0) if self.logprobs else None)

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


Asked: TypeAlias = ChatRequest | CompletionRequest

for _model in (_Request, CompletionRequest, ChatRequest):
    _model.model_rebuild()
