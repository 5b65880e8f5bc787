"""The families of models, for this folder's tests."""

from tests.families import (
    _own_cache_dir,
    embedded,
    family,
    model_of,
    parts_of,
    save_model,
    sizes,
    tiny,
    tiny_dir,
)

__all__ = [
    "_own_cache_dir",
    "embedded",
    "family",
    "model_of",
    "parts_of",
    "save_model",
    "sizes",
    "tiny",
    "tiny_dir",
]
