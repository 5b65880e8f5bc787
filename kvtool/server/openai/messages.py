"""Messages as OpenAI's API has them, those that it answers among them, and fields that may be there and say nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from kvtool.model.conversation import Message


def _nothing(value: Any) -> None:
    if value not in (None, "", [], {}):
        raise PydanticCustomError("unsupported", "is not supported by this server; leave it out")


def _text_alone(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        reason = "parts of type {kind} are not supported; expected text"
        raise PydanticCustomError("unsupported", reason, {"kind": repr(kind[:80])})
    return kind


Nothing = Annotated[None, BeforeValidator(_nothing)]
"""A field of OpenAI's API that is not supported. Clients send it too where it says nothing: null or empty."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TextPart(Body):
    type: Annotated[Literal["text"], BeforeValidator(_text_alone)]
    text: StrictStr


class ChatMessage(Body):
    """A message. The fields after ``name`` are those of answers, which clients send back as they got them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart] | None
    name: StrictStr | None = None
    refusal: Nothing = None
    annotations: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Nothing = None
    tool_call_id: Nothing = None
    parsed: Nothing = None

    @field_validator("content")
    @classmethod
    def _said(cls, content: Any, known: ValidationInfo) -> Any:
        if content is None and known.data.get("role") != "assistant":
            raise PydanticCustomError("null", "null is for messages of the assistant; expected text")
        return content

    @property
    def message(self) -> Message:
        """With its parts joined, and OpenAI's "developer" as the role that chat templates know."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        return Message("system" if self.role == "developer" else self.role, text)
