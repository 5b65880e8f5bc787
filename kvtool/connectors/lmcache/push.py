"""A store's documents → a running LMCache server, where an engine finds them by their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kvtool.artifact.load import refuse_gaps
from kvtool.artifact.read import Artifact
from kvtool.connectors.lmcache.server_state import Address, Layout, ServerState
from kvtool.connectors.lmcache.session import Session, sdk
from kvtool.counts import counted
from kvtool.errors import KvtoolError, MismatchError, StoreError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import Store
from kvtool.store.manifest import RAW, Document
from kvtool.store.sealing import not_encrypted
from kvtool.store.transfer.transfer import Report

KEY_LEAVES_OUT = (
    "LMCache finds a cache by the model's name and the token ids alone. Its key leaves out the weights' revision, quantization, "
    "RoPE, dtype and adapter: what an engine with other ones loads under this name would be wrong. Give each its own name or salt."
)


@dataclass
class LmcacheReport(Report):
    """``left_out`` are the tokens after the last whole chunk of ``chunk_size`` of each segment."""

    left_out: int = 0
    chunk_size: int = 0


@dataclass(frozen=True, eq=False)
class Piece:
    """A segment after its prefix: what one look-up in LMCache finds."""

    parts: Sequence[Artifact]
    chunk_size: int

    @cached_property
    def token_ids(self) -> list[int]:
        return [int(token) for part in self.parts for token in part.token_ids]

    @property
    def n_tokens(self) -> int:
        """Those in whole chunks."""
        return len(self.token_ids) // self.chunk_size * self.chunk_size

    @property
    def nbytes(self) -> int:
        geometry = self.parts[0].contents.geometry
        return (
            self.n_tokens * sum(layer.token_elements for layer in geometry.layers) * geometry.dtype.itemsize
        )

    def kv(self) -> Tensor:
        """[2, L, T, H · D], every byte checked."""
        sizes = self.parts[0].contents.geometry
        heads, channels = sizes.layers[0].keys
        kv = torch.empty(2, len(sizes.layers), len(self.token_ids), heads * channels, dtype=sizes.dtype)
        start = 0
        for part in self.parts:
            stop = start + len(part.token_ids)
            for group in part.contents.groups:
                for index, layer in zip(group, part.group(group), strict=True):
                    kv[0, index, start:stop] = layer.keys.transpose(0, 1).flatten(1)
                    kv[1, index, start:stop] = layer.values.transpose(0, 1).flatten(1)
            start = stop
        return kv


def push_to_lmcache(
    store: Store,
    to: str,
    names: Sequence[str] | None = None,
    *,
    variant: str | None = None,
    decrypt: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> LmcacheReport:
    """Stores documents' caches, all by default, in the server at ``lmcache://HOST:PORT``, of one variant: raw if they have it.

    What is found there already is not sent again, whoever put it there: LMCache replaces nothing. Raises ``UsageError`` for
    what is no address, ``StoreError`` for a server that takes no caches. Documents of another model than the server's are
    problems of the report.
    """
    address = Address.parse(to)
    if store.encrypted_with and not decrypt:
        raise not_encrypted(address, store)
    push = _Push(store, address, ServerState.read(address), dry_run, on_progress)
    sdk(address)
    return push.run(list(store) if names is None else list(dict.fromkeys(names)), variant)


@dataclass
class _Push:
    store: Store
    address: Address
    state: ServerState
    dry_run: bool
    on_progress: Callable[[Report], None]
    sessions: dict[str, Session] = field(default_factory=dict)

    def run(self, names: Sequence[str], variant: str | None) -> LmcacheReport:
        report = LmcacheReport(dry_run=self.dry_run, chunk_size=self.state.chunk_size)
        try:
            for name in names:
                try:
                    with self.store.using(name):
                        self._push(name, variant, report)
                except KvtoolError as error:
                    report.problems.append(error)
                    if isinstance(error, Unreachable):
                        break
        finally:
            for session in self.sessions.values():
                session.close()
        return report

    def _push(self, name: str, variant: str | None, report: LmcacheReport) -> None:
        document = self.store[name]
        layout = self.state.layout(self.address, document.model["name"])
        pieces = [piece for piece in self._pieces(document, variant, layout) if piece.n_tokens]
        if not pieces:
            reason = f"is shorter than one of LMCache's chunks, {self.state.chunk_size} tokens"
            raise StoreError(name, reason, "its server's --chunk-size decides")
        session = self._session(layout.model)
        missing = [piece for piece in pieces if session.held(piece.token_ids) < piece.n_tokens]
        report.left_out += sum(len(piece.token_ids) - piece.n_tokens for piece in pieces)
        report.nbytes_total += sum(piece.nbytes for piece in missing)
        for piece in [] if self.dry_run else missing:
            session.store(piece.kv(), piece.token_ids)
            if (held := session.held(piece.token_ids)) < piece.n_tokens:
                reason = f"{self.address} holds {held} of its {piece.n_tokens} tokens after all were sent"
                raise StoreError(name, reason, "is its memory too small (--l1-size-gb)? Its log says more")
            report.nbytes += piece.nbytes
            self.on_progress(report)
        (report.copied if missing else report.unchanged).append(name)

    def _pieces(self, document: Document, variant: str | None, layout: Layout) -> Iterator[Piece]:
        chosen = variant or (RAW if RAW in document.variants else max(document.variants, key=document.nbytes))
        for index in range(len(document.segments)):
            parts = self.store.parts(document.name, chosen, index)
            refuse_gaps(parts)
            for part in parts:
                refuse_unfit(document.name, part, layout)
            yield Piece(parts, self.state.chunk_size)

    def _session(self, model: str) -> Session:
        if model not in self.sessions:
            self.sessions[model] = Session(self.address, model)
        return self.sessions[model]


def refuse_unfit(name: str, part: Artifact, layout: Layout) -> None:
    """Raises ``MismatchError``, naming the field, for a cache that ``layout`` cannot hold, or that no prefill gives."""
    geometry = part.contents.geometry
    if not part.is_exact:
        reason = "is not what a prefill of its tokens gives, as LMCache's engines would take it to be"
        raise MismatchError(name, reason, "push documents that were prefilled, not blends or averages")
    if not all(map(geometry.holds_all, range(part.n_layers))):
        raise MismatchError(
            name, "has lost tokens, and LMCache's chunks hold every one", "push another variant"
        )
    differing = _difference(part, layout)
    if differing:
        remedy = "it is of another model: prefill it with the one that is served, in its dtype"
        raise MismatchError(name, f"{differing} of {layout.model} in LMCache", remedy)


def _difference(part: Artifact, layout: Layout) -> str:
    """What the cache has otherwise than ``layout``, in words; empty where they agree."""
    geometry, shape = part.contents.geometry, (layout.heads, layout.channels)
    if part.n_layers != layout.layers:
        return f"has {part.n_layers} layers, not the {layout.layers}"
    if (dtype := str(geometry.dtype).removeprefix("torch.")) != layout.dtype:
        return f"is of {dtype}, not the {layout.dtype}"
    for index, layer in enumerate(geometry.layers):
        for side, held in (("keys", layer.keys), ("values", layer.values)):
            if held != shape:
                return (
                    f"has {side} of {held[0]} x {held[1]} in layer {index}, not the {shape[0]} x {shape[1]}"
                )
    return ""


def remarks(report: LmcacheReport) -> list[str]:
    """What whoever pushed should know."""
    said = [KEY_LEAVES_OUT]
    if report.left_out:
        tokens = counted(report.left_out, "token was left out", "tokens were left out")
        said.append(f"LMCache keeps whole chunks of {report.chunk_size} tokens: {tokens}.")
    return said
