"""What scores read beyond keys and values: names, shapes and meanings.

H is the number of key heads, Q that of query heads, of which Q / H in a row share a key head; T is the number of a
segment's tokens, and D that of a key's channels. All are of one layer, and floating. Weights are those after the softmax,
whose sum over the prefix and the segment is one; the prefix's columns are left out. Each can be summed up pass by pass:
none needs the attention matrix of all tokens at once.
"""

from __future__ import annotations

from torch import Tensor

from kvtool.codecs.errors import CodecError, NeedsError
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.spec import Payload

RECEIVED = "received"
"""[H, T]: the weights that a token receives from all of the segment's tokens from itself on, summed over these, and their
mean over the query heads that share the key head."""

WINDOW_WEIGHTS = "window_weights"
"""[Q, W, T]: the weights that each of the segment's last W tokens gives each token; zero for tokens after it. W is 32 or 64,
or T where that is less."""

WINDOW_QUERIES = "window_queries"
"""[Q, W, D]: the queries of the same W tokens as they meet the keys, rotated."""

REPLAYED = "replayed"
"""[H, T]: the largest weight that a token receives in any query head of its key head while the segment is fed again, after a
request to repeat it."""

REPLAY_QUERIES = "replay_queries"
"""[Q, R, D]: the queries of some of the tokens that are fed again, evenly chosen, as they meet the keys, rotated. They are
multiplied so that scores are q·k/√D, whatever the family's scaling is."""

MOVED_QUERIES = "moved_queries"
"""[Q, R, D]: the queries of some of the segment's own tokens, evenly chosen, turned as if they came right after it, and
multiplied likewise. They are what a text asks that goes on in the same way."""

QUERY_MEAN = "query_mean"
"""[Q, D]: the mean of the segment's queries before RoPE, without those of the first four positions, multiplied likewise."""

QUERY_COVARIANCE = "query_covariance"
"""[Q, D, D]: the covariance of the same queries, divided by their number."""

COPIED = "copied"
"""[Q, 2]: while the segment is fed again, the mean weight that its tokens give to their own place in the segment, and to the
token after that."""

HIDDEN_COSINE = "hidden_cosine"
"""[1]: the mean over tokens of the cosine between hidden states before and after the layer's attention, its residual
added."""

TOKEN_ENTROPY = "token_entropy"
"""[T]: how unexpected each token is, -log of its probability after those before it, in nats; zero for one with none before
it. The same for all layers."""

WINDOW = 32
"""The window's tokens, where a method's paper names no other number."""

_AXES = {
    RECEIVED: "HT",
    WINDOW_WEIGHTS: "QWT",
    WINDOW_QUERIES: "QWD",
    REPLAYED: "HT",
    REPLAY_QUERIES: "QRD",
    MOVED_QUERIES: "QRD",
    QUERY_MEAN: "QD",
    QUERY_COVARIANCE: "QDD",
    COPIED: "Q2",
    HIDDEN_COSINE: "1",
    TOKEN_ENTROPY: "T",
}


def read(inputs: Payload, name: str, layer: LayerKV) -> Tensor:
    """The input ``name`` as float32.

    Raises ``NeedsError`` where it is missing, and ``CodecError`` where its shape does not fit ``layer``.
    """
    if name not in inputs:
        raise NeedsError([name])
    tensor, (heads, tokens, channels) = inputs[name], layer.keys.shape
    sizes = {"H": heads, "T": tokens, "D": channels, "1": 1, "2": 2}
    expected = [sizes.get(axis) for axis in _AXES[name]]
    shape = tuple(tensor.shape)
    if (
        len(shape) != len(expected)
        or any(size is not None and size != actual for size, actual in zip(expected, shape, strict=True))
        or ("Q" in _AXES[name] and shape[0] % heads)
        or ("W" in _AXES[name] and shape[1] > tokens)
    ):
        axes = ", ".join(_AXES[name])
        raise CodecError(
            f"input {name!r} is {list(shape)}, expected [{axes}] for keys {[heads, tokens, channels]}"
        )
    return tensor.float()


def by_group(tensor: Tensor, heads: int) -> Tensor:
    """``tensor`` [Q, ...] as [H, Q / H, ...]: the query heads that share each key head."""
    return tensor.reshape(heads, tensor.shape[0] // heads, *tensor.shape[1:])
