"""Calibration of the recipe ``kvquant``: how much an error in each channel of keys and values costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.codecs.calibrate.rows import gradient_rows
from kvtool.codecs.calibration import Calibration, Sample, entry
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.pipeline import Pipeline

SIDES = ("keys", "values")


def fit(samples: Sequence[Sample], *, sinks: int = 1) -> Calibration:
    """The Fisher information of each channel: the mean over tokens of the squared gradient of the loss.

    Tensors are [H · D] float32, one for the keys, before RoPE, and one for the values of each layer, with mean 1 in
    each: only ratios count. Positions below ``sinks`` are left out. Samples without gradients do not count. Raises
    CodecError for samples of several models, and where no token has gradients.
    """
    sums: dict[str, Tensor] = {}
    tokens = 0
    for sample in samples:
        if sample.gradients is None:
            continue
        contents = Contents.of(sample.kv, Pipeline())
        after_sinks = slice(max(sinks - (contents.start or 0), 0), None)
        tokens += len(sample.kv.token_ids[after_sinks])
        for group in contents.groups:
            for side in SIDES:
                squares = gradient_rows(sample, contents, group, side, after_sinks).double().square().sum(0)
                name = entry(group.start, side)
                if name in sums and len(sums[name]) != len(squares):
                    raise CodecError("kvquant: samples are of several models; expected caches of one")
                sums[name] = sums[name] + squares if name in sums else squares
    if not tokens:
        raise CodecError(
            f"kvquant: no sample has tokens with gradients after the first {sinks}; give longer documents"
        )
    return Calibration(
        "kvquant", {"tokens": tokens}, {name: _relative(total) for name, total in sums.items()}
    )


def _relative(total: Tensor) -> Tensor:
    mean = total.mean()
    return (total / mean if mean > 0 else torch.ones_like(total)).float()
