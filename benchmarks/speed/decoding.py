"""What decoding ``klt`` takes: steps, lanes, bytes and operations for models of many sizes, and what an H100 needs for them.

python -m benchmarks decoding [--tokens 4096] [--ratio 80] [--geometry NAME …] [--device DEVICE]

That is counted, not measured, from the sizes of caches and the layout of the coder. Where there is a GPU, kernels are held
against the reference on it, decoding there is timed beside a copy of the raw cache and beside a prefill, and answers over
loaded caches are compared with those after a full prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.speed import on_device
from benchmarks.speed.geometries import GEOMETRIES, Geometry
from kvtool.codecs.entropy.wide import Wide
from kvtool.codecs.klt.calibrate import components_at_most
from kvtool.kernels.reference.wide import bands

FEATURES = 512
"""Directions of an embedding, of each of two tokens, that a row is predicted from."""

FLOPS, BANDWIDTH, BUS = 989e12, 3.35e12, 64e9
"""Of an H100 SXM: products in bfloat16 a second, bytes of memory a second, bytes a second over PCIe 5 from the host."""

LAUNCH = 5e-6
"""Seconds of a step of the coder, assumed: one launch of a kernel, which waits for the one before."""


@dataclass(frozen=True)
class Decoding:
    """Counts of decoding ``tokens`` tokens, coded in ``ratio`` times fewer bytes than 16 bits."""

    geometry: Geometry
    tokens: int
    ratio: float

    @property
    def ranks(self) -> list[int]:
        """The most components of keys, and of values, that a calibration keeps."""
        return [components_at_most(width) for width in self.geometry.widths]

    @property
    def chunks(self) -> int:
        return -(-self.tokens // Wide.chunk)

    @property
    def steps(self) -> int:
        """That depend on one another: tokens of a chunk, and what the last band lags behind the first."""
        return -(-self.tokens // self.chunks) + max(len(bands(rank)) for rank in self.ranks) - 1

    @property
    def lanes(self) -> int:
        """That are decoded side by side: components of both sides, in all chunks."""
        return self.chunks * sum(self.ranks)

    @property
    def entries(self) -> int:
        """Of the directions of components and features, which all tokens share."""
        sides = zip(self.geometry.widths, self.ranks, strict=True)
        return sum(width * (rank + 2 * FEATURES) for width, rank in sides)

    @property
    def flops(self) -> int:
        """Of a token: coefficients and features times directions."""
        return 2 * self.entries

    @property
    def coded_bytes(self) -> float:
        """Of a token."""
        return self.geometry.raw_bytes / self.ratio

    @property
    def seconds(self) -> float:
        """On an H100 at its best: the coder's steps, and then what takes longer, products or memory."""
        products = self.tokens * self.flops / FLOPS
        memory = (2 * self.entries + self.tokens * self.geometry.raw_bytes) / BANDWIDTH
        copy = self.tokens * self.coded_bytes / BUS
        return copy + self.steps * LAUNCH + max(products, memory)

    @property
    def copy_seconds(self) -> float:
        """Of the raw cache from the host, at the bus's best."""
        return self.tokens * self.geometry.raw_bytes / BUS

    @property
    def prefill_seconds(self) -> float:
        """On an H100 at its best, without attention."""
        return self.tokens * 2 * self.geometry.parameters / FLOPS


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--ratio", type=float, default=80.0)
    parser.add_argument("--device", help="measure there; default: a GPU, where there is one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    arguments = parser.parse_args(argv)
    print(
        f"{arguments.tokens:,} tokens, {arguments.ratio:g} times fewer bytes; counted, with {LAUNCH:g} s a step"
    )
    counted = {
        name: Decoding(GEOMETRIES[name], arguments.tokens, arguments.ratio) for name in arguments.geometry
    }
    print_table(
        [
            "",
            "steps",
            "lanes",
            "raw kB",
            "coded kB",
            "MFLOP",
            "% of prefill",
            "H100 ms",
            "copy ms",
            "prefill ms",
        ],
        [
            [
                name,
                one.steps,
                f"{one.lanes:,}",
                f"{one.geometry.raw_bytes / 1e3:.1f}",
                f"{one.coded_bytes / 1e3:.2f}",
                f"{one.flops / 1e6:.0f}",
                f"{one.flops / (2 * one.geometry.parameters):.1%}",
                f"{1e3 * one.seconds:.1f}",
                f"{1e3 * one.copy_seconds:.1f}",
                f"{1e3 * one.prefill_seconds:.1f}",
            ]
            for name, one in counted.items()
        ],
    )
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.device is None and device.type == "cpu":
        print("no GPU: nothing is measured")
        return
    print(machine())
    on_device.measure(device, arguments.tokens, arguments.repeats)
