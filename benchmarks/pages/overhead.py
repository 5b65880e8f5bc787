"""What methods store beside their codes, in bits per value, on a small model and on a usual one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pages.tables import table

USUAL_HEADS, USUAL_SIZE, USUAL_LAYERS = 8, 128, 32
"""Of a model of 8B parameters, such as Llama 3.1."""

SCALE = 16
"""Bits of a scale, a zero point, a length, or an entry of a factor."""

WINDOW = 128


@dataclass(frozen=True)
class Shape:
    """Key-value heads of a layer, channels of a head, and tokens of a document."""

    heads: int
    size: int
    tokens: int

    @property
    def per_head(self) -> float:
        """A scale and a zero for each token in each head."""
        return 2 * SCALE / self.size

    @property
    def length(self) -> float:
        """A length for each token in each head."""
        return SCALE / self.size

    @property
    def per_token(self) -> float:
        """A scale and a zero for each token over all heads of a layer."""
        return 2 * SCALE / (self.heads * self.size)

    @property
    def grouped(self) -> float:
        """A scale and a zero for each 32 values, whatever the head's size."""
        return 2 * SCALE / 32

    @property
    def low_rank(self) -> float:
        """Two factors of rank 4 for each head of a layer."""
        return SCALE * 4 * (self.tokens + self.size) / (self.tokens * self.size)

    @property
    def basis(self) -> float:
        """A basis of rank 1/8 that four layers share, stored with each document."""
        width = 4 * self.heads * self.size
        return SCALE * (width / 8) * width / (self.tokens * width)

    @property
    def window(self) -> float:
        """The last tokens in 16 bits."""
        return 16 * WINDOW / self.tokens


ROWS = (
    ("a scale and a zero for each token and head", "`mikv`, `rotatekv`", "per_head"),
    ("a length for each token and head", "`turboquant`", "length"),
    ("a scale and a zero for each token, over all heads", "`kvquant`, `zipcache`", "per_token"),
    ("a scale and a zero for each 32 values", "`kivi`", "grouped"),
    ("two factors of rank 4 for each head", "`gear`", "low_rank"),
    ("a basis of rank 1/8 for four layers", "`xkv`", "basis"),
    (f"the last {WINDOW} tokens in 16 bits", "`kivi`, `kvtc`", "window"),
)


def overhead(heads: int, size: int, tokens: int) -> str:
    """The table, for this model and documents of ``tokens`` tokens beside a usual model and longer ones."""
    shapes = (
        Shape(heads, size, tokens),
        Shape(USUAL_HEADS, USUAL_SIZE, tokens),
        Shape(USUAL_HEADS, USUAL_SIZE, 8 * tokens),
    )
    header = ["stored beside the codes", "for example"]
    header += [f"{s.heads} heads of {s.size}, {s.tokens:,} tokens" for s in shapes]
    rows = [[what, who, *(f"{getattr(shape, name):.2f}" for shape in shapes)] for what, who, name in ROWS]
    return table(header, rows)
