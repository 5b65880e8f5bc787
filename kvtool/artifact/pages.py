"""Reading parts of an artifact: some layers whole, of others some pages, each checked against its digest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import blake3
import torch
from torch import Tensor

from kvtool.artifact.read import Artifact, broken, page_digests_name, reading
from kvtool.codecs import CodecError, LayerKV
from kvtool.codecs.format import container
from kvtool.codecs.format.paged import Paged
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.digest import digest
from kvtool.errors import ArtifactError


class PartReader:
    """Reads parts of ``artifact`` and counts their bytes.

    ``nbytes`` are those that were read of the file, header and token ids included. Whatever is handed out has been checked.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.nbytes = min(artifact.offsets.values()) + container.nbytes(artifact.entries[TOKEN_IDS])

    def layers(self, layers: Iterable[int]) -> dict[int, LayerKV]:
        """All tokens of each of ``layers``, whose groups are read at once."""
        wanted = set(layers)
        groups = [group for group in self.artifact.contents.groups if wanted & set(group)]
        names = {group: list(self.artifact.contents.arrays(group)) for group in groups}
        tensors = self.tensors([name for group in groups for name in names[group]])
        decoded: dict[int, LayerKV] = {}
        for group in groups:
            stored = {name: tensors[name] for name in names[group]}
            decoded |= dict(zip(group, self.artifact.decoded(group, stored), strict=True))
        return decoded

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Whole tensors, which are read at once."""
        entries, offsets = self.artifact.entries, self.artifact.offsets
        ranges = [range(offsets[name], offsets[name] + container.nbytes(entries[name])) for name in names]
        tensors: dict[str, Tensor] = {}
        for name, data in zip(names, self.read(ranges), strict=True):
            if digest(data) != self.artifact.meta["tensors"][name]:
                raise broken(
                    self.artifact.path, f"tensor {name} has changed since it was written (digest differs)"
                )
            dtype, shape = entries[name]
            tensors[name] = _tensor(bytearray(data), dtype, shape)
        return tensors

    def read(self, ranges: Sequence[range]) -> Sequence[bytes]:
        """The bytes of the file in ``ranges``, not checked."""
        artifact = self.artifact
        data = artifact.fetch(ranges) if artifact.fetch else _read_file(artifact.path, ranges)
        self.nbytes += sum(map(len, data))
        if list(map(len, data)) != list(map(len, ranges)):
            raise broken(artifact.path, "it is cut off")
        return data


class PageReader(PartReader):
    """Reads an artifact by pages. The bounds of ``layers`` are read at once, when it is made."""

    def __init__(self, artifact: Artifact, layers: Sequence[int]) -> None:
        super().__init__(artifact)
        assert artifact.paged is not None
        self.paged: Paged = artifact.paged
        names = [
            name for layer in layers for name in (*self.paged.bound_names(layer), page_digests_name(layer))
        ]
        self._tensors = self.tensors(names)

    @property
    def n_pages(self) -> int:
        return self.paged.n_pages

    def bounds(self, layer: int) -> tuple[Tensor, Tensor]:
        """The smallest and the largest key of each page and channel, [P, H, D] float32 each."""
        try:
            return self.paged.bounds(self._tensors, layer)
        except CodecError as error:
            raise ArtifactError(self.artifact.path, error) from error

    def pages(self, layer: int, pages: Sequence[int]) -> LayerKV:
        """The tokens of ``pages``, ascending, of one layer. Neighbouring pages are one range of the file."""
        runs = list(_runs(self.paged, pages))
        arrays = self.paged.arrays(layer)
        size = {name: array.nbytes // self.paged.n_tokens for name, array in arrays.items()}
        ranges = [
            range(offset + run.start * size[name], offset + run.stop * size[name])
            for name, offset in ((name, self.artifact.offsets[name]) for name in arrays)
            for run in runs
        ]
        data = iter(self.read(ranges))
        rows = {name: bytearray().join(next(data) for _ in runs) for name in arrays}
        self._check(layer, pages, rows, size)
        n_tokens = sum(map(len, runs))
        tensors = {
            name: _tensor(rows[name], array.dtype, (n_tokens, *array.shape[1:]))
            for name, array in arrays.items()
        }
        tensors |= {name: self._tensors[name][list(pages)] for name in self.paged.bound_names(layer)}
        try:
            return self.paged.decode(layer, pages, tensors)
        except CodecError as error:
            raise ArtifactError(self.artifact.path, error) from error

    def _check(
        self, layer: int, pages: Sequence[int], rows: Mapping[str, bytearray], size: Mapping[str, int]
    ) -> None:
        expected, start = self._tensors[page_digests_name(layer)], 0
        for page in pages:
            stop = start + len(self.paged.tokens(page))
            parts = (memoryview(data)[start * size[name] : stop * size[name]] for name, data in rows.items())
            if _digest(parts) != bytes(expected[page].tolist()):
                reason = f"page {page} of layer {layer} has changed since it was written (digest differs)"
                raise broken(self.artifact.path, reason)
            start = stop


def page_digests(paged: Paged, layer: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The digest of each page of a layer, [P, 32] uint8: of its tokens' rows in one of ``paged.arrays`` after the other."""
    rows = {name: container.raw_bytes(tensors[name]) for name in paged.arrays(layer)}
    size = {name: len(data) // max(1, paged.n_tokens) for name, data in rows.items()}
    digests = b"".join(
        _digest(data[tokens.start * size[name] : tokens.stop * size[name]] for name, data in rows.items())
        for tokens in map(paged.tokens, range(paged.n_pages))
    )
    return _tensor(bytearray(digests), torch.uint8, (paged.n_pages, len(_digest(()))))


def _digest(parts: Iterable[bytes | memoryview]) -> bytes:
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return bytes(hasher.digest())


def _runs(paged: Paged, pages: Sequence[int]) -> Iterator[range]:
    """The tokens of ``pages``, ascending, in as few ranges as there are."""
    for _, group in groupby(enumerate(pages), key=lambda pair: pair[1] - pair[0]):
        run = [page for _, page in group]
        yield range(paged.tokens(run[0]).start, paged.tokens(run[-1]).stop)


def _read_file(path: Path, ranges: Sequence[range]) -> list[bytes]:
    data: list[bytes] = []
    with reading(path), path.open("rb", buffering=0) as file:
        for wanted in ranges:
            file.seek(wanted.start)
            data.append(file.read(len(wanted)))
    return data


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)
