"""Calibration of the recipe ``kvtc``: a basis for a model's keys, one for its values, and bits for each component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.codecs.calibrate.bits import allocate
from kvtool.codecs.calibrate.principal import mean_of, principal
from kvtool.codecs.calibrate.rows import cache_rows
from kvtool.codecs.calibration import Calibration, Sample, entry, refuse_too_few
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.spec import Json

RATIOS = (8, 16, 32, 64, 128)
MEASURED = 256
"""Tokens that the errors of blocks are measured on."""


def fit(
    samples: Sequence[Sample], *, rank: int = 10_000, sinks: int = 4, recent: int = 128, seed: int = 0
) -> Calibration:
    """Mean, principal components and bits for keys and values of each run of layers of equal sizes.

    The first ``sinks`` and the last ``recent`` tokens of each sample are left out, as ``kvtc`` leaves them whole.
    At most ``rank`` components are looked for; those that no ratio has bits for are not kept. One sample at a time
    is worked on, several times over. Raises CodecError for samples whose layers differ or that are all too short, and for
    fewer tokens than a layer has channels.
    """
    contents = [Contents.of(sample.kv, Pipeline(layers=0)) for sample in samples]
    if len({one.groups for one in contents}) != 1:
        raise CodecError("kvtc: samples are of several models, or there are none; expected caches of one")
    ranks: dict[str, Json] = {}
    blocks: dict[str, Json] = {}
    tensors: dict[str, Tensor] = {}
    tokens = 0
    for group in contents[0].groups:
        for side in ("keys", "values"):
            name = entry(group.start, side)
            rows = _Rows(samples, contents, group, side, sinks, recent)
            mean, tokens = mean_of(rows, rows.width)
            if not tokens:
                raise CodecError(
                    f"kvtc: no sample has more than {sinks + recent} tokens, those at both ends that are kept whole; give "
                    "longer documents"
                )
            refuse_too_few(
                "kvtc", tokens, rows.sizes[1] * rows.sizes[2], "tokens between the ends of samples"
            )
            centred = _Centred(rows, mean)
            basis = principal(centred, rows.width, min(rank, rows.width, tokens), seed).half()
            seen = _some(centred, tokens) @ basis.float().mT
            runs = allocate(seen, {ratio: rows.width // ratio for ratio in RATIOS})
            kept = max(sum(run.channels for run in own) for own in runs.values())
            ranks[name] = kept
            blocks[name] = {
                str(ratio): [[run.blocks, run.size, run.bits] for run in own] for ratio, own in runs.items()
            }
            tensors[f"{name}.basis"] = basis[:kept].reshape(kept, *rows.sizes).contiguous()
            tensors[f"{name}.mean"] = mean.reshape(rows.sizes)
    facts: dict[str, Json] = {
        "tokens": tokens,
        "sinks": sinks,
        "recent": recent,
        "rank": ranks,
        "blocks": blocks,
    }
    return Calibration("kvtc", facts, tensors)


@dataclass(frozen=True)
class _Rows:
    """The keys, before RoPE, or the values of a group of layers: [tokens, L · H · D] float32, sample by sample."""

    samples: Sequence[Sample]
    contents: Sequence[Contents]
    group: range
    side: str
    sinks: int
    recent: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        layer = self.contents[0].geometry.layers[self.group.start]
        heads, channels = layer.keys if self.side == "keys" else layer.values
        return len(self.group), heads, channels

    @property
    def width(self) -> int:
        layers, heads, channels = self.sizes
        return layers * heads * channels

    def __iter__(self) -> Iterator[Tensor]:
        for sample, contents in zip(self.samples, self.contents, strict=True):
            held = sample.kv.layers[self.group.start].positions.numel()
            between = slice(self.sinks, max(held - self.recent, self.sinks))
            rows = cache_rows(sample, contents, self.group, self.side, between)
            if rows.shape[1] != self.width:
                raise CodecError("kvtc: samples differ in heads or channels; expected caches of one model")
            yield rows


@dataclass(frozen=True)
class _Centred:
    rows: _Rows
    mean: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return (part - self.mean for part in self.rows)


def _some(rows: _Centred, tokens: int) -> Tensor:
    """Rows from all samples, evenly spaced."""
    wanted = torch.linspace(0, tokens - 1, min(MEASURED, tokens)).long()
    found, start = [], 0
    for part in rows:
        own = wanted[(wanted >= start) & (wanted < start + len(part))] - start
        found.append(part[own])
        start += len(part)
    return torch.cat(found)
