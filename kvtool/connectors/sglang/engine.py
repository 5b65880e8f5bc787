"""What SGLang has loaded, asked of SGLang itself.

Relied on, in sglang 0.5.23: in each of its processes ``runtime_context.get_model()`` has what was decided about the model, by
the names of the server's arguments. When weights are replaced under a version's name, ``get_serving().weight_version`` changes;
when they are loaded from a disk, ``model_path`` and ``load_format`` say from which and how.
``mem_cache.utils.get_hash_str(ids, None, page_size)`` gives the keys of pages for requests without a namespace. A request with
one (an adapter, a cache salt) has other keys, and so finds nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.mem_cache.utils import get_hash_str
from sglang.srt.runtime_context import get_model, get_serving

from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.sglang.pages import Pages
from kvtool.connectors.sglang.tier import Engine
from kvtool.errors import MismatchError, ModelError

_LATENT = ("deepseek_v2", "deepseek_v3")
"""Models with latent attention of which ``deepseek_v2.py`` of SGLang makes all: it reads ``rope_interleave``."""

_USUAL: Mapping[str, tuple[Any, ...]] = {
    "kv_cache_dtype": ("auto",),
    # Those that read the safetensors files which kvtool hashes.
    "load_format": ("auto", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer"),
    "weight_cache_mode": ("off",),
    "checkpoint_engine_wait_weights_before_ready": (False,),
    "custom_weight_loader": (None, []),
    "download_dir": (None,),
    "modelopt_quant": (None,),
    "modelopt_checkpoint_restore_path": (None,),
    "quantize_and_serve": (False,),
    "rl_quant_profile": (None,),
    "model_config_parser": ("auto", "hf"),
    "json_model_override_args": (None, "", "{}"),
    "decrypted_config_file": (None,),
}
"""With these arguments, the model is the one in its directory, and its cache is of its own dtype."""


def engine(pages: Pages) -> Engine:
    """Raises ``KvtoolError``, naming the field, for what no store can hold the caches of."""
    loaded = get_model()
    refuse_unsuited(loaded)
    # With kv_cache_dtype "auto", the model computes in the dtype that it is cached in.
    dtype = str(pages.pool.dtype).removeprefix("torch.")
    model = EngineModel.at(
        loaded.model_path, dtype=dtype, revision=loaded.revision, quantization=loaded.quantization
    )
    # Now, while the files are those that SGLang loads.
    model.take_fingerprint()
    model.provide_embedding()
    return Engine(model, partial(page_hashes, page_size=pages.n_tokens), has_pairs(model, pages))


def page_hashes(token_ids: Sequence[int], page_size: int) -> list[str]:
    """The keys of whole pages."""
    return list(get_hash_str(list(token_ids), None, page_size)) if token_ids else []


def weights() -> Mapping[str, Any]:
    """What changes when SGLang's weights do, as far as it says so: those that come from another process may leave no trace."""
    model = get_model()
    return {
        "weight_version": get_serving().weight_version,
        "model_path": model.model_path,
        "load_format": model.load_format,
    }


def refuse_unsuited(loaded: Any) -> None:
    """Raises ``ModelError`` for a server whose model is not the one in its directory, or whose cache is of another dtype."""
    for field, expected in _USUAL.items():
        if (value := getattr(loaded, field)) not in expected:
            raise ModelError(loaded.model_path, f"no store has caches for {field} {value}")
    if envs.SGLANG_USE_MODELSCOPE.get() and not Path(loaded.model_path).exists():
        raise ModelError(
            loaded.model_path, "comes from ModelScope, where kvtool does not look", "name its directory"
        )


def has_pairs(model: EngineModel, pages: Pages) -> bool:
    """Whether channels of latent attention that turn together lie side by side in SGLang.

    Raises ``MismatchError`` for a model whose keys SGLang turns otherwise than transformers, as far as is known.
    """
    config, name = model.model.text_config, model.model.name
    if pages.is_latent and config.model_type not in _LATENT:
        raise MismatchError(name, f"has latent attention of another kind ({config.model_type})")
    return bool(getattr(config, "rope_interleave", True))
