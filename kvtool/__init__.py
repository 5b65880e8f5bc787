"""kvtool: turns documents into KV caches ahead of time.

Names are imported on first use, so that ``import kvtool`` and ``kvtool --help`` do not pay for torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import codecs as codecs
    from .blend import blend as blend
    from .calibrate import calibrate as calibrate
    from .compress import compress as compress
    from .engines.cache import DocumentCache as DocumentCache
    from .errors import KvtoolError as KvtoolError
    from .evaluate import evaluate as evaluate
    from .model import Model as Model
    from .model import load_model as load_model
    from .prefill import prefill as prefill
    from .store import Store as Store

_HOME = {
    "DocumentCache": ".engines.cache",
    "KvtoolError": ".errors",
    "Model": ".model",
    "Store": ".store",
    "blend": ".blend",
    "calibrate": ".calibrate",
    "compress": ".compress",
    "evaluate": ".evaluate",
    "load_model": ".model",
    "prefill": ".prefill",
}

__all__ = [
    "DocumentCache",
    "KvtoolError",
    "Model",
    "Store",
    "blend",
    "calibrate",
    "codecs",
    "compress",
    "evaluate",
    "load_model",
    "prefill",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
    elif name == "codecs":
        value = importlib.import_module(".codecs", __name__)
    else:
        raise AttributeError(f"module 'kvtool' has no attribute {name!r}")
    globals()[name] = value
    return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the submodule kvtool.compress binds it here; the function of that name is what is meant.
        if isinstance(value, ModuleType) and _HOME.get(name) == f".{name}":
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
