"""A model and its tokenizer, loaded, and their identity."""

from __future__ import annotations

import copy
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from kvtool.digest import digest, digest_json
from kvtool.errors import ModelError, UsageError, first_line
from kvtool.model import embedding
from kvtool.model.checkpoint import check_adapter, refuse_uncovered
from kvtool.model.fingerprint import (
    Identity,
    digest_config,
    digest_tokenizer,
    digest_weights,
    file_tensors,
    weight_files,
)
from kvtool.model.gguf import converted
from kvtool.model.hf_logging import quiet
from kvtool.model.locate import locate
from kvtool.model.weights import LoadIn, load_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """A language model, its tokenizer and its identity.

    ``model`` and ``tokenizer`` are the transformers objects. The weights are loaded when ``model`` is first used, so
    that a run which finds everything in the store never loads them. On a CPU the model's attention is that of
    ``grouped_attention``; nothing else about it is changed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        load_in: LoadIn | None = None,
        adapter: Path | None = None,
    ) -> None:
        self.directory, self.name, self.load_in, self.adapter = directory, name, load_in, adapter
        self.config = self._load_config()
        self.device_map = _device_map(device)
        self.dtype = _dtype(dtype, self.config, self.device_map)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, dtype={self.dtype_name}, fingerprint={self.fingerprint[:12]}…)"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def text_config(self) -> Any:
        return self.config.get_text_config(decoder=True)

    @property
    def context(self) -> int:
        """The number of positions that the model was made for, and rotates the keys of in one way.

        LongRoPE turns every key by other angles once a prompt is longer than ``original_max_position_embeddings``. Keys
        that were cached below cannot be used above, so the context ends there.
        """
        made_for = int(getattr(self.text_config, "max_position_embeddings", 0) or 0)
        # Families without an end, such as XLNet, have 0 or -1 here.
        return min([made_for if made_for > 0 else 2048, *_turning_points(rope_parameters(self.text_config))])

    @cached_property
    def identity(self) -> Identity:
        template = self.tokenizer.chat_template
        weights = digest_weights(self.directory)
        self.remember_embedding()
        return Identity(
            weights=weights,
            config=digest_config(self.directory),
            tokenizer=digest_tokenizer(self.directory),
            chat_template=digest_json(template),
            rope=rope_parameters(self.text_config),
            dtype=self.dtype_name,
            quantization=self.load_in and f"bitsandbytes-{self.load_in}",
            adapters=() if self.adapter is None else (digest_adapter(self.adapter),),
        )

    def remember_embedding(self) -> None:
        """Has calibrations that name the model's input embedding find it. Its files are hashed, once."""
        vocabulary = int(getattr(self.text_config, "vocab_size", 0) or 0)
        for path in weight_files(self.directory):
            embedding.remember(path.resolve(), file_tensors(path), vocabulary)

    @property
    def fingerprint(self) -> str:
        """Hex digest of weights, config, tokenizer, chat template, RoPE, dtype, quantization and adapters."""
        return self.identity.fingerprint

    @cached_property
    def tokenizer(self) -> Any:
        try:
            with quiet():
                return transformers.AutoTokenizer.from_pretrained(
                    self.directory, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, ImportError) as error:
            reason = f"its tokenizer cannot be loaded ({first_line(error)})"
            remedy = "the model's directory needs its tokenizer files"
            raise ModelError(self.name, reason, remedy) from error

    @cached_property
    def text_tokenizer(self) -> Any:
        """A copy of ``tokenizer`` that takes special tokens for text, those that it does not call special too.

        Only runs of white space stay tokens: some tokenizers have added them, and they command nothing. A tokenizer remembers
        which of the two it does last: of two threads that share one, each could get the other's.
        """
        copied = copy.deepcopy(self.tokenizer)
        added = copied.added_tokens_decoder.values()
        unmarked = [token.content for token in added if not (token.special or token.content.isspace())]
        copied.add_tokens(unmarked, special_tokens=True)
        copied("", split_special_tokens=True)
        return copied

    @cached_property
    def model(self) -> Any:
        return load_weights(
            self.directory,
            self.name,
            dtype=self.dtype,
            device_map=self.device_map,
            load_in=self.load_in,
            adapter=self.adapter,
        )

    def _load_config(self) -> Any:
        refuse_uncovered(self.directory)
        try:
            with quiet():
                return transformers.AutoConfig.from_pretrained(
                    self.directory, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError) as error:
            reason = f"is not a model that transformers knows ({first_line(error)})"
            raise ModelError(
                self.name, f"{reason}. kvtool never runs code that comes with a model"
            ) from error


def load_model(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    load_in: LoadIn | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """The model at ``source``: a directory, a ``.gguf`` file, a hub id with or without ``@revision``, or the
    embedded default.

    ``device`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or any of accelerate's device maps. ``dtype`` is ``auto``
    (float32 on a CPU, the checkpoint's own on a GPU), ``float32``, ``bfloat16`` or ``float16``. ``load_in`` loads
    the weights in 4 or 8 bits through bitsandbytes. ``adapter`` is a PEFT adapter's directory.

    Raises ``ModelError`` with what to install or name instead, ``UsageError`` for an option's value.
    """
    directory, name = locate(source)
    if directory.is_file():
        directory = converted(directory)
    if adapter is not None:
        adapter = Path(adapter)
        if importlib.util.find_spec("peft") is None:
            raise ModelError("--adapter", "needs the peft package", "pip install 'kvtool[adapters]'")
        check_adapter(adapter)
    if load_in not in (None, "4bit", "8bit"):
        raise UsageError(f"load-in {load_in!r}", "expected 4bit or 8bit")
    return Model(directory, name=name, device=device, dtype=dtype, load_in=load_in, adapter=adapter)


def _device_map(device: str) -> str:
    if device == "auto":
        return "auto" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        remedy = "use --device cpu, or install a CUDA build of torch"
        raise ModelError(f"--device {device}", "this torch sees no CUDA GPU", remedy)
    return device


def _dtype(name: str, config: Any, device_map: str) -> torch.dtype:
    if name == "auto":
        text_config = config.get_text_config(decoder=True)
        checkpoint = getattr(text_config, "dtype", None) or getattr(config, "dtype", None)
        return torch.float32 if device_map == "cpu" else (checkpoint or torch.bfloat16)
    if name not in _DTYPES:
        raise UsageError(f"dtype {name!r}", f"expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def rope_parameters(config: Any) -> dict[str, Any]:
    """A text config's RoPE settings, as an identity has them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {str(k): v for k, v in sorted(dict(parameters).items())}


def _turning_points(rope: dict[str, Any]) -> list[int]:
    """The lengths from which on LongRoPE rotates otherwise; ``rope`` has its parameters, or those of each kind of layer."""
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    long = [kind for kind in kinds if kind.get("rope_type", kind.get("type")) == "longrope"]
    return [int(kind["original_max_position_embeddings"]) for kind in long]


def digest_adapter(directory: Path) -> str:
    """Digest of a PEFT adapter's weights and settings."""
    weights = digest_weights(directory, name="adapter_model.safetensors")
    return digest_json([weights, digest((directory / "adapter_config.json").read_bytes())])
