"""Calibrate ``klt`` at the size of a large model, then encode and decode: seconds, and peak memory.

python -m benchmarks large [--geometry llama-3.1-8b] [--tokens 8192] [--step 0.075]

The caches are made up: components across all layers whose deviation falls as that of real ones does, and noise. Nothing
is said of quality. Linux only (/proc).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.speed.geometries import GEOMETRIES, Geometry
from kvtool.calibration.pieces import PIECE_TOKENS
from kvtool.codecs import KV, LayerKV, Sample, decode, encode
from kvtool.codecs import Geometry as CacheGeometry
from kvtool.codecs.klt.calibrate import fit
from kvtool.codecs.klt.embeddings import provide
from kvtool.codecs.klt.memory import fit_nbytes
from kvtool.codecs.recipe_registry import recipe
from kvtool.codecs.rope import Rope, turn
from kvtool.measurement.peak_memory import peak

VOCABULARY, EMBEDDING = 32_000, 1024
LATENT = 2048
"""Components that caches are made of."""
LOUDEST, FALL, NOISE = 2.0, 0.7, 0.002
"""Deviation of the first component, the power of its number that others fall with, and of each channel's noise."""


class Synthetic(Sequence[Sample]):
    """``tokens`` tokens in pieces of 1,024, with gradients. Keys and values are kept, as while calibrating."""

    def __init__(self, geometry: Geometry, tokens: int) -> None:
        half = geometry.key_channels // 2
        self.geometry, self.rope = geometry, Rope(tuple(500_000.0 ** (-n / half) for n in range(half)))
        self.pieces = [self._piece(n, min(PIECE_TOKENS, tokens - n)) for n in range(0, tokens, PIECE_TOKENS)]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Sample:  # type: ignore[override]
        kv, generator = self.pieces[number], torch.Generator().manual_seed(number)

        def gradient(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator)

        return Sample(
            kv, tuple(LayerKV(gradient(x.keys), gradient(x.values), x.positions) for x in kv.layers)
        )

    def _piece(self, seed: int, tokens: int) -> KV:
        generator, sizes = torch.Generator().manual_seed(seed), self.geometry
        deviation = LOUDEST * torch.arange(1, LATENT + 1) ** -FALL
        latent = torch.randn(2, tokens, LATENT, generator=generator) * deviation
        ids, positions = torch.randint(VOCABULARY, (tokens,), generator=generator), torch.arange(tokens)
        layers = []
        for layer in range(sizes.layers):
            sides = []
            for side, channels in enumerate((sizes.key_channels, sizes.value_channels)):
                # The same in every piece; a component has length 1 over all layers.
                own = torch.Generator().manual_seed(2 * layer + side)
                mixing = torch.randn(LATENT, sizes.heads * channels, generator=own)
                rows = latent[side] @ mixing / sizes.widths[side] ** 0.5
                rows += NOISE * torch.randn(rows.shape, generator=generator)
                sides.append(rows.view(tokens, sizes.heads, channels).transpose(0, 1).contiguous())
            turn(sides[0], self.rope, positions, scaling=1.0, undo=False)
            layers.append(LayerKV(sides[0].half(), sides[1].half(), positions))
        rope = {"rotations": [self.rope.to_json()], "rotation_of_layer": [0] * sizes.layers}
        return KV(tuple(layers), ids, rope)


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama-3.1-8b")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--step", type=float, default=0.075)
    arguments = parser.parse_args(argv)
    print(machine())
    geometry, rows = GEOMETRIES[arguments.geometry], []

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        with peak() as measured:
            result = work()
        memory = "" if measured.nbytes is None else f"{measured.nbytes / 1e9:.2f}"
        rows.append([what, f"{time.monotonic() - started:.1f}", memory])
        print(" ".join(rows[-1]), flush=True)
        return result

    samples = timed(f"making up {arguments.tokens} tokens", lambda: Synthetic(geometry, arguments.tokens))
    embedding = torch.randn(VOCABULARY, EMBEDDING, generator=torch.Generator().manual_seed(1))
    provide(lambda digest: embedding if digest == "made up" else None)
    estimate = fit_nbytes(CacheGeometry.of(samples.pieces[0]), arguments.tokens)
    print(f"estimated for calibrating: {estimate / 1e9:.2f} GB", flush=True)
    calibration = timed("calibrating", lambda: fit(samples, embedding=embedding, embedding_digest="made up"))
    pipeline = recipe("klt").build(calibration, step=arguments.step, power=0.0)
    kv = samples.pieces[0]
    blob = timed(f"encoding {kv.n_tokens} tokens", lambda: encode(kv, pipeline))
    timed(f"decoding {kv.n_tokens} tokens", lambda: decode(blob))
    print_table(["", "s", "GB more than before"], rows)
    ranks = {name: basis["rank"] for name, basis in calibration.facts["bases"].items()}
    size = f"{geometry.raw_bytes * kv.n_tokens / blob.nbytes:.1f} times fewer bytes"
    print(f"calibration {calibration.nbytes / 1e6:.1f} MB, components {ranks}, {size}")
