"""Requests and answers of /v1/cachedContents, shaped like Gemini's; and what there is to prefill."""

from __future__ import annotations

import time
from typing import Annotated, Literal, NotRequired

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from kvtool import limits
from kvtool.documents.split import bounded
from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import Prefix, document_tokens, prefix_of
from kvtool.model.model import Model
from kvtool.prefilling.prefill import segment_limit
from kvtool.server.cached_contents.store import Record, new_id
from kvtool.server.http.errors import ApiError
from kvtool.server.runtime.errors import model_missing

DEFAULT_SECONDS = 3600.0
"""How long cached contents live whose request does not say it."""


class UsageMetadata(TypedDict):
    totalTokenCount: int


class Progress(TypedDict):
    tokens: int
    tokensTotal: int


class Failure(TypedDict):
    message: str


class CachedContent(TypedDict):
    """Gemini's fields, and ``state``, ``progress`` and ``error``."""

    name: str
    model: str
    createTime: str
    updateTime: str
    expireTime: str
    usageMetadata: UsageMetadata
    state: Literal["PROCESSING", "ACTIVE", "FAILED"]
    progress: Progress
    displayName: NotRequired[str]
    error: NotRequired[Failure]


class CachedContentList(TypedDict):
    cachedContents: list[CachedContent]
    nextPageToken: NotRequired[str]


class Deleted(TypedDict):
    """The empty object."""


class _Body(BaseModel):
    # As in protobuf's JSON, both expireTime and expire_time are understood.
    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class Part(_Body):
    text: StrictStr


class Content(_Body):
    parts: Annotated[list[Part], Field(min_length=1)]
    role: StrictStr | None = None

    @property
    def text(self) -> str:
        return "\n\n".join(part.text for part in self.parts)


class UserContent(Content):
    role: Literal["user"] | None = None


class Expiry(_Body):
    """When a content expires. ``ttl`` is from now on, in seconds: "3600s"."""

    ttl: Annotated[StrictStr, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?s$")] | None = None
    expire_time: Annotated[AwareDatetime, Field(strict=True)] | None = None

    def after(self, now: float) -> float | None:
        """Seconds since 1970, or None if nothing was asked. Raises ``ApiError`` for a time too early or too late."""
        if self.ttl is None and self.expire_time is None:
            return None
        if self.ttl is not None and self.expire_time is not None:
            raise ApiError(400, "ttl and expireTime: give one of them", param="ttl")
        field = "expireTime" if self.expire_time else "ttl"
        until = self.expire_time.timestamp() if self.expire_time else now + float((self.ttl or "")[:-1])
        if not 1 <= until - now <= limits.CACHED_SECONDS:
            days = limits.CACHED_SECONDS / 86_400
            raise ApiError(400, f"{field}: expected a time from 1 second to {days:g} days ahead", param=field)
        return until


class NewContent(Expiry):
    model: StrictStr
    contents: Annotated[list[UserContent], Field(min_length=1, max_length=1)]
    system_instruction: Content | None = None
    display_name: Annotated[StrictStr, Field(max_length=128)] | None = None


def new_record(model: Model, request: NewContent) -> Record:
    """The record of what is to be prefilled. Raises ``ApiError`` for what the model cannot take."""
    now = time.time()
    if request.model.removeprefix("models/") != model.name:
        raise model_missing(request.model, model.name)
    expires = request.after(now) or now + DEFAULT_SECONDS
    system = request.system_instruction.text if request.system_instruction else None
    prefix, max_tokens = _prefix(model, system)
    text = request.contents[0].text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text.encode()) > limits.DOCUMENT_BYTES:
        raise ApiError(400, f"contents: larger than {limits.DOCUMENT_BYTES:,} bytes", param="contents")
    tokens = _count(model, text, max_tokens)
    if text.isspace() or not tokens:
        raise ApiError(400, "contents: expected some text", param="contents")
    if tokens > max_tokens:
        raise _too_long("contents", max_tokens, model)
    return Record(
        id=new_id(),
        display_name=request.display_name,
        model=model.name,
        fingerprint=model.fingerprint,
        system=system,
        prefix_tokens=len(prefix.token_ids),
        tokens=tokens,
        created=now,
        updated=now,
        expires=expires,
        text=text,
    )


def _prefix(model: Model, system: str | None) -> tuple[Prefix, int]:
    """The prefix of the contents, and how many tokens there may be of these."""
    if system is not None:
        if _count(model, system, model.context) > model.context:
            raise _too_long("systemInstruction", model.context, model)
        # The chat template is read with its special tokens, and it holds the system prompt by then.
        if document_tokens(model, system) != model.tokenizer(system, add_special_tokens=False).input_ids:
            message = f"systemInstruction: spells out a special token of {model.name}; leave it out"
            raise ApiError(400, message, param="systemInstruction")
    try:
        prefix = prefix_of(model, system=system)
        return prefix, segment_limit(model, prefix)
    except (ModelError, UsageError) as error:
        raise ApiError(400, f"systemInstruction: {error}", param="systemInstruction") from error


def _count(model: Model, text: str, max_tokens: int) -> int:
    """Tokens of ``text``, or just more than ``max_tokens``."""
    return bounded(lambda part: len(document_tokens(model, part)), max_tokens)(text)


def _too_long(field: str, max_tokens: int, model: Model) -> ApiError:
    message = f"{field}: has more than the {max_tokens:,} tokens that {model.name} has room for here; make it shorter"
    return ApiError(400, message, param=field, code="context_length_exceeded")
