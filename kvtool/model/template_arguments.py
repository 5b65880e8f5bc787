"""Arguments that a request gives the chat template, such as ``enable_thinking``, and which of them are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
from typing import Any

from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from transformers import PreTrainedTokenizerBase

from kvtool.errors import UsageError
from kvtool.model.chat_template import document_tokens, template_tokens
from kvtool.model.model import Model

_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""The tags that transformers adds to the language of templates."""

_OURS = {
    *signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *("messages", "strftime_now", "raise_exception", "kvtool_times"),
}
"""What transformers or kvtool give the template themselves."""


def refuse_arguments(model: Model, arguments: Mapping[str, Any]) -> None:
    """Raises ``UsageError`` for an argument that is not the request's to give, or of which the chat template knows nothing.

    So for one that spells out a special token, since the template's text is read with them.
    """
    if not arguments:
        return
    ours = _OURS | set(model.tokenizer.special_tokens_map)
    has_template = model.tokenizer.chat_template is not None
    known = _variables(model.tokenizer.get_chat_template()) - ours if has_template else frozenset()
    for name, value in arguments.items():
        if name in ours:
            raise UsageError(name, "is given to the chat template by the server", "leave it out")
        if name not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise UsageError(name[:80], f"is no argument of the chat template of {model.name}", takes)
        text = json.dumps(value, ensure_ascii=False)
        if document_tokens(model, text) != template_tokens(model, text):
            raise UsageError(name, f"spells out a special token of {model.name}", "leave it out")


@lru_cache(maxsize=16)
def _variables(template: str) -> frozenset[str]:
    """The names that ``template`` expects to be given."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    return frozenset(find_undeclared_variables(environment.parse(_GENERATION.sub("", template))))
