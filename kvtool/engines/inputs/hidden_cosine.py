"""How little each layer's attention changes the hidden states of a segment.

No model-specific code. What a layer adds its attention to, and whether a norm comes in between, is seen from the tensors that
its modules are given, in the order in which they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cosine_similarity

from kvtool.codecs import Inputs
from kvtool.codecs.prune.scores.inputs import HIDDEN_COSINE
from kvtool.engines.attention.capture import capture_error, step_tokens
from kvtool.engines.attention.override import family_attention, override_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.once_per_model import once_per_model
from kvtool.engines.recompute import recompute_tokens
from kvtool.engines.transformers import feed, windows
from kvtool.model.model import Model


@torch.no_grad()
def hidden_cosine(model: Model, cache: DocumentCache, token_ids: Tensor) -> Inputs:
    """``hidden_cosine`` [1] float32 for each layer, of the segment ``token_ids`` [T] int64, the last T tokens of ``cache``.

    The mean over the segment's tokens of the cosine between a layer's input and the same after the attention was added. Where
    a family computes attention and feed-forward side by side, the sum of its input and its attention's output is taken. The
    segment is run once more over the cache, which is left as it was. Raises ``ModelError`` for a family whose attention cannot
    be captured.
    """
    end = cache.get_seq_length()
    step = step_tokens(end)
    with watch_layers(layers_of(model)) as watched:
        for first in range(end - len(token_ids), end, step):
            positions = torch.arange(first, min(first + step, end))
            recompute_tokens(model, cache, cache.token_ids, positions, write=False)
    return {HIDDEN_COSINE: [layer.mean() for layer in watched]}


@once_per_model
def layers_of(model: Model) -> list[tuple[Module, Module]]:
    """Each layer's module, and that of its attention in it.

    Raises ``ModelError`` for a family whose attention cannot be captured.
    """
    n_layers, attentions = len(windows(model)), dict[int, Module]()
    implementation = model.model.config.get_text_config(decoder=True)._attn_implementation

    def note(module: Any, *parts: Any, **options: Any) -> Tensor:
        attentions[module.layer_idx] = module
        return family_attention(implementation, module, *parts, **options)

    refusal = capture_error(model)
    with override_attention(model, note, refusal):
        feed(model, [1], DocumentCache(n_layers))
    parents = {child: module for module in model.model.modules() for child in module.children()}
    if attentions.keys() != set(range(n_layers)):
        raise refusal
    return [(parents[attentions[index]], attentions[index]) for index in range(n_layers)]


@contextmanager
def watch_layers(layers: Sequence[tuple[Module, Module]]) -> Iterator[list[_Watched]]:
    with ExitStack() as hooks:
        watched = [_Watched(hooks, *layer) for layer in layers]
        yield watched


class _Watched:
    """The sum of cosines of one layer. Within a pass, tensors are known by what they are, not by what they hold."""

    def __init__(self, hooks: ExitStack, layer: Module, attention: Module) -> None:
        self.attention, self.total, self.count = attention, 0.0, 0
        self.start(layer, (), {})
        for handle in (
            layer.register_forward_pre_hook(self.start, with_kwargs=True),
            layer.register_forward_hook(self.finish),
            *(m.register_forward_pre_hook(self.before, with_kwargs=True) for m in layer.children()),
            *(m.register_forward_hook(self.after, with_kwargs=True) for m in layer.children()),
        ):
            hooks.callback(handle.remove)

    def start(self, module: Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.input = _tensor(args, options)
        self.known = [self.input]
        self.added: Tensor | None = None
        self.sum: Tensor | None = None

    def before(self, module: Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = _tensor(args, options)
        if self.added is None or self.sum is not None or given is None or given.shape != self.added.shape:
            return
        # A norm or a dropout of the attention's output, or a branch beside it; anything else is what the two add up to.
        if given is not self.added and not self.is_known(given):
            self.sum = given

    def after(self, module: Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        given, states = _tensor(args, options), output[0] if isinstance(output, tuple) else output
        if module is self.attention or (self.added is not None and given is self.added):
            self.added = states
        elif self.added is None or self.is_known(given):
            self.known.append(states)

    def is_known(self, states: Tensor | None) -> bool:
        """Whether these are the layer's input, or came from it without its attention."""
        return any(states is tensor for tensor in self.known)

    def finish(self, module: Module, args: tuple[Any, ...], output: Any) -> None:
        assert self.input is not None
        assert self.added is not None
        changed = self.input + self.added if self.sum is None else self.sum
        cosines = cosine_similarity(self.input.float(), changed.float(), dim=-1)
        self.total, self.count = self.total + float(cosines.sum()), self.count + cosines.numel()
        self.start(module, (), {})

    def mean(self) -> Tensor:
        return torch.tensor([self.total / max(self.count, 1)])


def _tensor(args: tuple[Any, ...], options: dict[str, Any]) -> Tensor | None:
    """The hidden states that a module is given."""
    given = args[0] if args else options.get("hidden_states")
    return given if isinstance(given, Tensor) else None
