"""What SGLang has loaded, asked of SGLang itself.

Relied on, in sglang 0.5.23: in each of its processes ``runtime_context.get_model()`` has what was decided about the model, by
the names of the server's arguments, and ``get_serving().weight_version`` changes when weights are replaced under a version's
name. ``mem_cache.utils.get_hash_str(ids, None, page_size)`` gives the keys of pages for requests without a namespace. A request
with one (an adapter, a cache salt) has other keys, and so finds nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sglang.srt.mem_cache.utils import get_hash_str
from sglang.srt.runtime_context import get_model, get_serving

from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.sglang.pages import Pages
from kvtool.connectors.sglang.tier import Engine
from kvtool.errors import MismatchError, ModelError

_LATENT = ("deepseek_v2", "deepseek_v3")
"""Models with latent attention of which ``deepseek_v2.py`` of SGLang makes all: it reads ``rope_interleave``."""


def engine(pages: Pages) -> Engine:
    """Raises ``KvtoolError``, naming the field, for what no store can hold the caches of."""
    loaded = get_model()
    refuse_unsuited(loaded)
    # With kv_cache_dtype "auto", the model computes in the dtype that it is cached in.
    dtype = str(pages.pool.dtype).removeprefix("torch.")
    model = _model(loaded, dtype)
    return Engine(model, partial(page_hashes, page_size=pages.n_tokens), has_pairs(model, pages))


def page_hashes(token_ids: Sequence[int], page_size: int) -> list[str]:
    """The keys of whole pages."""
    return list(get_hash_str(list(token_ids), None, page_size)) if token_ids else []


def weight_version() -> Any:
    """Changes when SGLang's weights do, if whoever replaced them gave a version."""
    return get_serving().weight_version


def refuse_unsuited(loaded: Any) -> None:
    """Raises ``ModelError`` for a server whose model is not the one in its directory, or whose cache is of another dtype."""
    usual: dict[str, tuple[Any, ...]] = {
        "kv_cache_dtype": ("auto",),
        "json_model_override_args": (None, "", "{}"),
        "modelopt_quant": (None,),
        "rl_quant_profile": (None,),
        "decrypted_config_file": (None,),
    }
    odd = {
        field: value for field, expected in usual.items() if (value := getattr(loaded, field)) not in expected
    }
    if loaded.load_format == "dummy":
        odd["load_format"] = "dummy"
    for field, value in odd.items():
        raise ModelError(loaded.model_path, f"no store has caches for {field} {value}")


def has_pairs(model: EngineModel, pages: Pages) -> bool:
    """Whether channels of latent attention that turn together lie side by side in SGLang.

    Raises ``MismatchError`` for a model whose keys SGLang turns otherwise than transformers, as far as is known.
    """
    config, name = model.model.text_config, model.model.name
    if pages.is_latent and config.model_type not in _LATENT:
        raise MismatchError(name, f"has latent attention of another kind ({config.model_type})")
    return bool(getattr(config, "rope_interleave", True))


def _model(loaded: Any, dtype: str) -> EngineModel:
    model = EngineModel.at(loaded.model_path, dtype=dtype, revision=loaded.revision)
    # A checkpoint that was saved quantized says so in its config, which has a digest.
    is_saved_so = getattr(model.model.config, "quantization_config", None) is not None
    quantization = None if is_saved_so else loaded.quantization
    return EngineModel(model.model, quantization)
