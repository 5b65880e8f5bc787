"""A store's documents → a running LMCache server, where an engine finds them by their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kvtool.connectors.lmcache.piece import Piece, refuse_other_model
from kvtool.connectors.lmcache.server_state import Address, Layout, ServerState
from kvtool.connectors.lmcache.session import Session, sdk
from kvtool.counts import counted
from kvtool.errors import KvtoolError, StoreError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.base import Store
from kvtool.store.manifest import RAW, Document
from kvtool.store.sealing import not_encrypted
from kvtool.store.transfer.transfer import Report

KEY_LEAVES_OUT = (
    "LMCache finds a cache by the model's name and the token ids alone. Its key leaves out the weights' revision, "
    "quantization, RoPE, dtype and adapter: an engine that has others under this name would load wrong values. Give each a "
    "name or a salt of its own."
)


@dataclass
class LmcacheReport(Report):
    """``left_out`` are the tokens after the last whole chunk of ``chunk_size`` of each segment."""

    left_out: int = 0
    chunk_size: int = 0


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
    checked: set[tuple[str, str]] = field(default_factory=set)

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
            session.store(piece.kv(self.store), piece.token_ids[: piece.n_tokens])
            if (held := session.held(piece.token_ids)) < piece.n_tokens:
                reason = f"{self.address} holds {held} of its {piece.n_tokens} tokens after all were sent"
                raise StoreError(name, reason, "is its memory too small (--l1-size-gb)? Its log says more")
            report.nbytes += piece.nbytes
            self.on_progress(report)
        (report.copied if missing else report.unchanged).append(name)

    def _pieces(self, document: Document, variant: str | None, layout: Layout) -> Iterator[Piece]:
        chosen = variant or (RAW if RAW in document.variants else max(document.variants, key=document.nbytes))
        for segment in document.segments:
            piece = Piece.of(self.store, document, segment, chosen, self.state.chunk_size)
            piece.refuse_unfit(layout)
            key = document.model["fingerprint"], layout.model
            if key not in self.checked:
                made_by = piece.parts[-1].meta["model"]
                refuse_other_model(document.name, made_by, document.model["name"], layout)
                self.checked.add(key)
            yield piece

    def _session(self, model: str) -> Session:
        if model not in self.sessions:
            self.sessions[model] = Session(self.address, model)
        return self.sessions[model]


def remarks(report: LmcacheReport) -> list[str]:
    """What whoever pushed should know."""
    said = [KEY_LEAVES_OUT]
    if report.left_out:
        tokens = counted(report.left_out, "token was left out", "tokens were left out")
        said.append(f"LMCache keeps whole chunks of {report.chunk_size} tokens: {tokens}.")
    return said
