"""A model's weights, loaded as the identity says: nothing added, filled in or left out by transformers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from kvtool.errors import ModelError, first_line
from kvtool.model.grouped_attention import use_grouped_attention
from kvtool.model.hf_logging import quiet
from kvtool.model.run_settings import use_our_settings

LoadIn = Literal["4bit", "8bit"]

_NAMED = 5
"""Tensors that a message names; it counts the others."""

log = logging.getLogger(__name__)


def load_weights(
    directory: Path,
    name: str,
    *,
    dtype: torch.dtype,
    device_map: str,
    load_in: LoadIn | None,
    adapter: Path | None,
) -> Any:
    """The transformers model of ``directory``, ready to run.

    Raises ``ModelError`` if it cannot be loaded, or if its files or the adapter's lack tensors.
    """
    options: dict[str, Any] = {}
    if load_in is not None:
        options["quantization_config"] = _quantization(load_in, dtype)
    try:
        with quiet():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                device_map=device_map,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
            _check_tensors(name, report["missing_keys"], report["unexpected_keys"])
            if adapter is not None:
                loaded = model.load_adapter(str(adapter))
                _check_tensors(str(adapter), loaded.missing_keys, loaded.unexpected_keys)
    except ImportError as error:
        raise ModelError(name, first_line(error)) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(name, f"cannot be loaded ({first_line(error)})") from error
    use_our_settings(model)
    use_grouped_attention(model)
    return model.eval().requires_grad_(False)


def _check_tensors(source: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuses missing tensors, which transformers fills with random numbers, and reports those that it does not use."""
    if missing:
        raise ModelError(
            source,
            f"its safetensors files lack {_listed(missing)}, which transformers would fill with random numbers",
            "download or convert the model again",
        )
    if unexpected:
        log.warning("%s: %s are not used: the config has no place for them", source, _listed(unexpected))


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    rest = len(names) - len(first)
    return ", ".join(first) + (f" and {rest} more tensors" if rest else "")


def _quantization(load_in: LoadIn, dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--load-in {load_in}", "needs the bitsandbytes package", "pip install bitsandbytes")
    if load_in == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
