"""Reading artifacts: one segment's KV in a safetensors file that says what it is.

Any safetensors reader opens it. ``__metadata__`` holds one canonical JSON value under ``kvtool``. Each tensor's digest
stands in it, and so does the digest of the whole, taken over the header without that one field; it names the file. A
reader rebuilds the header from what it parsed and compares the bytes, so no bit of a file is unchecked. Tensors are
stored layer by layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import blake3
import torch
from torch import Tensor

from kvtool import limits
from kvtool.artifact.identity import RAW, calibration_digests
from kvtool.artifact.reading import reading
from kvtool.artifact.scores import DTYPE, SCORES, tensor_name
from kvtool.codecs import KV, Array, Calibration, CodecError, Contents, LayerKV, MissingCalibration
from kvtool.codecs.calibration import NONE
from kvtool.codecs.format import container
from kvtool.codecs.format.container import DTYPES, Entry
from kvtool.codecs.format.paged import Paged
from kvtool.codecs.klt.embeddings import provide
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.digest import canonical_json, digest, digest_token_ids
from kvtool.errors import ArtifactError, BrokenFile
from kvtool.formats import FORMATS
from kvtool.model.embedding import find as find_embedding

# Calibrations may name their model's embedding, which decoding then needs.
provide(find_embedding)

FORMAT = FORMATS["artifact"].number
"""The newest format that is read, and the one that is written."""

DIGEST_BYTES = 32

Fetch: TypeAlias = Callable[[Sequence[range]], Sequence[bytes]]
"""Gives the bytes of a file in these ranges, in their order."""


@dataclass(frozen=True)
class Artifact:
    """An artifact file whose header has been checked. Tensors are checked as they are read.

    ``calibrations`` has those that its pipeline names, by digest. Where the file at ``path`` has no more than header and token
    ids, ``fetch`` reads ranges of the whole one, for ``artifact.pages``.
    """

    path: Path
    meta: Mapping[str, Any]
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]
    nbytes: int
    calibrations: Mapping[str, Calibration] = field(default_factory=dict, repr=False, compare=False)
    fetch: Fetch | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, path: Path, *, expected: str | None = None, calibrations: Mapping[str, Calibration] = NONE
    ) -> Artifact:
        """Raises ``ArtifactError``, naming what is wrong, unless the header is one that kvtool wrote.

        ``expected`` is the digest that the file must have. The file is refused too if it names a calibration that
        ``calibrations`` has not, since how much would be read is then unknown.
        """
        try:
            with reading(path):
                artifact = replace(_open(cls, path, expected), calibrations=calibrations)
            artifact._refuse_unplanned()
            return artifact
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            cause = f"{type(error).__name__}: {str(error)[:200]}"
            raise broken(path, f"its header is not an artifact's ({cause})") from error

    @property
    def digest(self) -> str:
        return str(self.meta["digest"])

    @property
    def n_layers(self) -> int:
        return len(self.contents.geometry.layers)

    @property
    def is_exact(self) -> bool:
        """Whether it is of what a prefill of its tokens after its prefix gives, compressed or not."""
        return "made" not in self.meta

    @property
    def scores(self) -> list[str]:
        """Those of ``SCORES`` that it has."""
        return list(self.meta.get("scores", []))

    def score(self, name: str) -> Tensor | None:
        """One of ``SCORES``, float32, if it has it."""
        return self.read(tensor_name(name)).float().nan_to_num(1.0) if name in self.scores else None

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs of stages that it holds instead of a cache (``artifact.collected``)."""
        return list(self.meta.get("made", {}).get("inputs", []))

    @property
    def is_raw(self) -> bool:
        return self.contents.pipeline == RAW

    @cached_property
    def contents(self) -> Contents:
        try:
            return Contents.from_metadata(self.meta, self.calibrations)
        except MissingCalibration as error:
            digest = error.digest[:80]
            remedy = (
                f"copy it from the store that this was compressed in (calibrations/{digest}.safetensors), "
                "or compress again with --replace"
            )
            reason = f"needs calibration {digest}, which the store does not hold"
            raise ArtifactError(self.path, reason, remedy) from error
        except CodecError as error:
            remedy = (
                "if a newer kvtool wrote it, upgrade, else run the same prefill or compress with --replace"
            )
            raise ArtifactError(self.path, str(error)[:300], remedy) from error

    @cached_property
    def paged(self) -> Paged | None:
        """Its pages, if it can be read by them; it then has ``page_digests_name`` of each layer."""
        return Paged.of(self.contents)

    def _refuse_unplanned(self) -> None:
        """The header may claim no other tensors than geometry and pipeline call for: they decide what is allocated."""
        geometry = self.contents.geometry
        if geometry.n_elements * geometry.dtype.itemsize > limits.ARTIFACT_BYTES:
            raise broken(self.path, f"its geometry claims more than {limits.ARTIFACT_BYTES} bytes")
        if geometry.n_tokens > limits.ARTIFACT_TOKENS:
            raise broken(self.path, f"its geometry claims more than {limits.ARTIFACT_TOKENS} tokens")
        # Every group has a tensor. There is no room for groups yet where even full ones would be too many.
        most = (self.contents.pipeline.layers or self.n_layers) * len(self.entries)
        if self.n_layers > most or len(self.contents.groups) > len(self.entries):
            raise broken(self.path, f"it claims {self.n_layers} layers in {len(self.entries)} tensors")
        planned = {TOKEN_IDS: Array((geometry.n_tokens,), torch.int32)}
        sizes = {"layers": len(geometry.layers), "tokens": geometry.n_tokens}
        for name in self.scores:
            planned[tensor_name(name)] = Array(tuple(sizes[axis] for axis in SCORES[name]), DTYPE)
        for name in self.inputs:
            for index in range(self.n_layers):
                # Of any shape: they are no larger than the file.
                _, shape = self.entries[input_name(name, index)]
                planned[input_name(name, index)] = Array(shape, torch.float32)
        if self.paged:
            shape = self.paged.n_pages, DIGEST_BYTES
            names = map(page_digests_name, range(self.n_layers))
            planned |= dict.fromkeys(names, Array(shape, torch.uint8))
        try:
            for group in self.contents.groups:
                planned |= self.contents.arrays(group)
            stored = {name: entry for name, entry in self.entries.items() if name in planned}
            placed = container.layout(stored)
            if list(stored) != list(planned) or list(placed.items()) != list(self.entries.items()):
                odd = planned.keys() ^ stored.keys() or self.entries.keys() ^ stored.keys()
                first = min(odd, default="order")
                raise broken(self.path, f"its tensors are not those it should have (first: {first})")
            for name, (dtype, shape) in stored.items():
                planned[name].check(f"tensor {name}", torch.empty(shape, dtype=dtype, device="meta"))
        except CodecError as error:
            raise broken(self.path, str(error)[:300]) from error
        if self.meta["calibrations"] != calibration_digests(self.contents.pipeline):
            raise broken(self.path, "its calibrations are not those that its pipeline names")
        if self.meta["tensors"].keys() != planned.keys():
            raise broken(self.path, "its digests are not those of its tensors")

    @cached_property
    def token_ids(self) -> Tensor:
        """``[T]``, int64."""
        ids = self.read(TOKEN_IDS).to(torch.int64)
        if digest_token_ids(ids.tolist()) != self.meta["token_digest"]:
            raise broken(self.path, "its token ids are not those it names")
        return ids

    def kv(self) -> KV:
        layers = [layer for group in self.contents.groups for layer in self.group(group)]
        return KV(tuple(layers), self.token_ids, self.contents.rope, self.contents.start)

    def layer(self, index: int) -> LayerKV:
        """One layer, decoded; every byte of it has been checked."""
        group = next(group for group in self.contents.groups if index in group)
        return self.group(group)[group.index(index)]

    def group(
        self, group: range, tokens: range | None = None, device: torch.device | None = None
    ) -> list[LayerKV]:
        """The layers of one of ``contents.groups``, decoded: all tokens, or a range; keys and values on ``device``."""
        return self.decoded(group, self.stored(group), tokens, device)

    def stored(self, group: range) -> dict[str, Tensor]:
        """Stored tensors of one of ``contents.groups``, checked."""
        return {name: self.read(name) for name in self.contents.arrays(group)}

    def decoded(
        self,
        group: range,
        stored: Mapping[str, Tensor],
        tokens: range | None = None,
        device: torch.device | None = None,
    ) -> list[LayerKV]:
        """The layers that ``stored`` holds: all tokens, or a range of them; keys and values on ``device``."""
        try:
            return self.contents.decode(group, stored, tokens, self.token_ids, device)
        except CodecError as error:
            raise ArtifactError(self.path, error) from error

    def read(self, name: str) -> Tensor:
        """A fresh tensor, its digest checked."""
        if name not in self.entries:
            raise broken(self.path, f"tensor {name} is missing")
        dtype, shape = self.entries[name]
        out = torch.empty(shape, dtype=dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Reads into ``out`` (of the entry's shape and dtype, on the CPU), a view of anything, and checks the digest."""
        dtype, shape = self.entries[name]
        if out.dtype != dtype or tuple(out.shape) != shape:
            difference = f"{dtype} {list(shape)}, not {out.dtype} {list(out.shape)}"
            raise broken(self.path, f"tensor {name} is {difference}")
        self._read_pieces(name, runs(out))

    def _read_pieces(self, name: str, pieces: Iterable[memoryview]) -> None:
        """Reads the tensor's bytes into ``pieces``, one after the other, and checks their digest."""
        hasher = blake3.blake3()
        with reading(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(self.offsets[name])
            for piece in pieces:
                if _fill(file, piece) != len(piece):
                    raise broken(self.path, f"tensor {name} is cut off")
                hasher.update(piece)
        if hasher.hexdigest() != self.meta["tensors"][name]:
            raise broken(self.path, f"tensor {name} has changed since it was written (digest differs)")

    def verify(self) -> None:
        """Reads every byte, a few at a time. Raises ``ArtifactError`` for the first that is not what was written."""
        buffer = memoryview(bytearray(limits.MIB))
        for name in self.meta["tensors"]:
            nbytes = container.nbytes(self.entries[name])
            self._read_pieces(name, (buffer[: nbytes - at] for at in range(0, nbytes, len(buffer))))
        _ = self.token_ids
        padding = [name for name in self.entries if name not in self.meta["tensors"]]
        with reading(self.path), self.path.open("rb") as file:
            for name in padding:
                file.seek(self.offsets[name])
                if any(file.read(container.nbytes(self.entries[name]))):
                    raise broken(self.path, f"padding {name} is not zero")


def input_name(name: str, layer: int) -> str:
    """The name of an input's tensor of a layer in the file."""
    return f"inputs.{name}.{layer:04d}"


def page_digests_name(layer: int) -> str:
    """The name of the tensor with the digest of each page of a layer, [P, 32] uint8."""
    return f"digests.{layer:04d}"


def header_bytes(placed: Mapping[str, Entry], meta: Mapping[str, Any]) -> bytes:
    """A file's header, from the entries in file order and the metadata."""
    return container.header(placed, {"kvtool": canonical_json(meta).decode()})


def _open(cls: type[Artifact], path: Path, expected: str | None) -> Artifact:
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise broken(path, f"it has only {len(first)} bytes")
        if length > limits.HEADER_BYTES:
            raise broken(path, f"its header claims {length} bytes, more than {limits.HEADER_BYTES}")
        head = first + file.read(length)
        size = file.seek(0, 2)
    header = json.loads(head[8:])
    meta = json.loads(header.pop("__metadata__")["kvtool"])
    if type(meta["format"]) is not int or meta["format"] < 1:
        raise broken(path, f"its format is {str(meta['format'])[:80]}")
    if meta["format"] > FORMAT:
        reason = f"is an artifact of format {meta['format']}, this kvtool reads up to {FORMAT}"
        raise ArtifactError(path, reason, "upgrade kvtool")
    # What readers rely on: a header without it is none of ours, whatever its digest.
    _ = meta["identity"], meta["token_digest"], meta["source"]
    _ = meta["model"]["fingerprint"], meta["prefix"]["digest"]
    if len(header) > limits.ARTIFACT_TENSORS:
        raise broken(path, f"it claims {len(header)} tensors, more than {limits.ARTIFACT_TENSORS}")
    entries: dict[str, Entry] = {
        name: (DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))) for name, entry in header.items()
    }
    for name, (_, shape) in entries.items():
        # Two negative sizes would take as many bytes as two positive ones.
        if not all(0 <= size < 1 << 31 for size in shape):
            raise broken(path, f"tensor {name[:80]!r} has shape {str(shape)[:80]}")
    unsigned = {key: value for key, value in meta.items() if key != "digest"}
    if header_bytes(entries, meta) != head or digest(header_bytes(entries, unsigned)) != meta["digest"]:
        raise broken(path, "its header has changed since it was written (digest differs)")
    if expected is not None and meta["digest"] != expected:
        raise broken(path, f"it is another artifact ({meta['digest'][:12]}…) than its name says")
    offsets, end = {}, len(head)
    for name, entry in entries.items():
        offsets[name] = end
        end += container.nbytes(entry)
    if end != size or end > limits.ARTIFACT_BYTES:
        raise broken(path, f"it has {size} bytes, its header says {end}")
    return cls(path, meta, entries, offsets, size)


def runs(tensor: Tensor) -> Iterator[memoryview]:
    """The tensor's bytes in order, as views of its memory: one if it is contiguous, else one for each run.

    A segment's keys are a slice of a longer buffer; hashing and writing them must not copy them first.
    """
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        # numpy has no bfloat16, bytes have no type.
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    else:
        for part in tensor:
            yield from runs(part)


def _fill(file: Any, view: memoryview) -> int:
    done = 0
    while done < len(view) and (n := file.readinto(view[done:])):
        done += n
    return done


class BrokenArtifact(BrokenFile):
    """Its bytes are not those that kvtool wrote. What is merely newer, or cannot be read now, is no such thing."""


def broken(path: Path, what: str) -> BrokenArtifact:
    remedy = (
        "nothing was loaded; kvtool verify --remove takes broken artifacts out, and the same prefill or compress makes "
        "them again"
    )
    return BrokenArtifact(path, what, remedy)
