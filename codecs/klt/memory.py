"""Memory that fitting ``klt`` takes, estimated before it is spent.

The numbers are of peaks over caches of 5,760, 12,288 and 32,768 channels (``python -m benchmarks large``).
"""

from __future__ import annotations

from itertools import groupby

from kvtool.codecs.calibrate.principal import EXACT_AT_MOST
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.klt.calibrate import components_at_most
from kvtool.codecs.klt.statistics import CODED

FIXED = 300_000_000
PER_CHANNEL = 28_000
"""Bytes for each channel of all layers, of keys and of values: means, predictions, and rows of one sample."""
PER_WEIGHT = 16
"""For each two channels of a layer: weights and what undoes them, of keys and of values."""
PER_PRODUCT, PER_COMPONENT = 12, 25
"""For each two channels of all layers, where their covariance is built; and for each channel and component, while a
basis is looked for."""
PER_COEFFICIENT = 30
"""For each channel of all layers and each token that the entropy coder's statistics are of."""


def fit_nbytes(geometry: Geometry, tokens: int) -> int:
    """Bytes that ``fit`` takes for ``tokens`` tokens of caches of such layers, beside their keys and values. Within a fifth."""
    kept, largest = FIXED, 0
    for sizes, run in groupby((layer.keys, layer.values) for layer in geometry.layers):
        layers = len(list(run))
        for heads, channels in sizes:
            width = layers * heads * channels
            kept += (PER_WEIGHT * layers * (heads * channels) ** 2 + PER_CHANNEL * width) // 2
            basis = PER_COMPONENT * width * min(components_at_most(width), tokens)
            basis += PER_PRODUCT * width**2 if width <= EXACT_AT_MOST else 0
            coded = PER_COEFFICIENT * width * min(tokens, CODED)
            largest = max(largest, basis, coded)
    return kept + largest
