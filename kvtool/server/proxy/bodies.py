"""A request over documents → the body of the completions that an engine is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtool.connectors.blend_salt import blend_salt
from kvtool.server.http.errors import ApiError
from kvtool.server.openai.schemas import AnyRequest, ChatRequest, CompletionRequest
from kvtool.server.proxy.prompts import EnginePrompt

ANSWER_TOKENS = 1024
"""Length of answers to chats that do not say it, as kvtool's own server has it."""

PASSED = (
    *("model", "stream", "stop", "seed", "temperature", "top_p", "n", "user", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty"),
    *("min_tokens", "ignore_eos", "stop_token_ids"),
)
"""Fields that mean in vLLM's completions what they mean in both of kvtool's APIs."""


def is_over_documents(body: Any) -> bool:
    """Whether a request names documents of a store. vLLM's own field of that name has a list of objects."""
    if not isinstance(body, dict):
        return False
    documents = body.get("documents")
    items = documents if isinstance(documents, list) else [documents]
    return body.get("cached_content") is not None or any(isinstance(item, str) for item in items)


def refuse_unsupported(request: AnyRequest) -> list[str]:
    """The names of its documents. Raises ``ApiError`` for fields that another engine cannot do justice to."""
    if request.cached_content is not None:
        _refuse("cached_content", "is kept by kvtool serve-cache; name documents instead")
    if not request.use_cache:
        _refuse("use_cache", "is the engine's to decide; leave it out")
    if isinstance(request, CompletionRequest) and request.echo:
        _refuse("echo", "would give the documents back too; leave it out")
    assert request.documents is not None
    return request.documents


def _refuse(field: str, reason: str) -> None:
    raise ApiError(400, f"{field}: {reason}", param=field)


def engine_body(request: AnyRequest, prompts: Sequence[EnginePrompt], context: int) -> dict[str, Any]:
    """The body of POST /v1/completions. ``context`` is the model's.

    ``kv_transfer_params`` are for kvtool's connector in the engine; an engine without one does not look at them. vLLM's own
    cache of prefixes would give a blend's blocks to later prompts with the same tokens, as if these had been prefilled:
    ``cache_salt`` keeps them to requests of the same blend.
    """
    # Without those that are null, which not every engine takes for left out.
    body = {field: value for field in PASSED if (value := getattr(request, field)) is not None}
    if request.stream_options is not None:
        body["stream_options"] = {"include_usage": request.wants_usage}
    if request.n_logprobs is not None:
        body["logprobs"] = request.n_logprobs
    ids = [prompt.token_ids for prompt in prompts]
    (blend, *others) = {prompt.blend for prompt in prompts}
    if others or blend is None:
        named: dict[str, Any] = {"documents": request.documents, "blend": None}
    else:
        named = {"documents": request.documents, "blend": blend.name}
        body["cache_salt"] = blend_salt(blend.identity)
    return {
        **body,
        "prompt": ids[0] if len(ids) == 1 else ids,
        "max_tokens": _max_tokens(request, max(map(len, ids)), context),
        "kv_transfer_params": {"kvtool": named},
    }


def _max_tokens(request: AnyRequest, prompt_tokens: int, context: int) -> int:
    """Always a number: without one, vLLM's completions end after 16 tokens, and its streams fail for null."""
    if request.max_answer_tokens is not None:
        return request.max_answer_tokens
    assert isinstance(request, ChatRequest)
    return max(1, min(ANSWER_TOKENS, context - prompt_tokens))
