"""kvtool: turns documents into KV caches ahead of time.

Names are imported on first use, so that ``import kvtool`` and ``kvtool --help`` do not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvtool import codecs as codecs
    from kvtool.blending.blend import blend as blend
    from kvtool.calibration.calibrate import calibrate as calibrate
    from kvtool.compression.compress import compress as compress
    from kvtool.engines.cache import DocumentCache as DocumentCache
    from kvtool.errors import KvtoolError as KvtoolError
    from kvtool.evaluation.evaluation import evaluate as evaluate
    from kvtool.model.model import Model as Model
    from kvtool.model.model import load_model as load_model
    from kvtool.prefilling.prefill import prefill as prefill
    from kvtool.recommendation.recommend import recommend as recommend
    from kvtool.store.base import Store as Store

    __version__: str

_MODULES = {
    "DocumentCache": "kvtool.engines.cache",
    "KvtoolError": "kvtool.errors",
    "Model": "kvtool.model.model",
    "Store": "kvtool.store.open",
    "blend": "kvtool.blending.blend",
    "calibrate": "kvtool.calibration.calibrate",
    "compress": "kvtool.compression.compress",
    "evaluate": "kvtool.evaluation.evaluation",
    "load_model": "kvtool.model.model",
    "prefill": "kvtool.prefilling.prefill",
    "recommend": "kvtool.recommendation.recommend",
}

__all__ = [
    "DocumentCache",
    "KvtoolError",
    "Model",
    "Store",
    "__version__",
    "blend",
    "calibrate",
    "codecs",
    "compress",
    "evaluate",
    "load_model",
    "prefill",
    "recommend",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    elif name == "codecs":
        value = import_module("kvtool.codecs")
    elif name == "__version__":
        value = import_module("importlib.metadata").version("kvtool")
    else:
        raise AttributeError(f"module 'kvtool' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
