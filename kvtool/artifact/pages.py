"""Reading parts of an artifact: some layers whole, of others some pages, each checked against its digest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

import blake3
import torch
from torch import Tensor

from kvtool.artifact.read import Artifact, page_digests_name
from kvtool.artifact.reading import broken, reading
from kvtool.artifact.sealed import open_file
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

    def read(self, ranges: Sequence[range]) -> Sequence[memoryview]:
        """The bytes of the file in ``ranges``, not checked."""
        artifact, runs = self.artifact, list(joined(ranges))
        data = _fetch(artifact, runs) if runs else []
        self.nbytes += sum(map(len, data))
        if list(map(len, data)) != list(map(len, runs)):
            raise broken(artifact.path, "it is cut off")
        starts = [run.start for run in runs]

        def cut(wanted: range) -> memoryview:
            at = bisect_right(starts, wanted.start) - 1
            return memoryview(data[at])[wanted.start - starts[at] : wanted.stop - starts[at]]

        return [cut(wanted) if wanted else memoryview(b"") for wanted in ranges]


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
        runs = list(joined(map(self.paged.tokens, pages)))
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


def joined(ranges: Iterable[range]) -> Iterator[range]:
    """What ``ranges``, which do not overlap, cover: ascending, and as few as there are."""
    run = range(0)
    for one in sorted(filter(None, ranges), key=lambda one: one.start):
        if run and one.start == run.stop:
            run = range(run.start, one.stop)
            continue
        if run:
            yield run
        run = one
    if run:
        yield run


def _fetch(artifact: Artifact, ranges: Sequence[range]) -> Sequence[bytes]:
    if artifact.fetch:
        return artifact.fetch(ranges)
    data: list[bytes] = []
    with reading(artifact.path), open_file(artifact.path) as file:
        for wanted in ranges:
            file.seek(wanted.start)
            data.append(file.read(len(wanted)))
    return data


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)
