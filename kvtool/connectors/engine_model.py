"""The model that another engine has loaded, as far as it decides what a cache holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kvtool.codecs.klt.embeddings import provide
from kvtool.errors import ModelError
from kvtool.model.embedding import find
from kvtool.model.fingerprint import digest_config, digest_weights, weight_files
from kvtool.model.locate import locate
from kvtool.model.model import Model, digest_adapter, rope_parameters

_PINNED = re.compile(r"[^/@]+/[^/@]+@[0-9a-f]{40}")
"""A hub id with the commit that it resolved to, which is a digest of all its files."""

_CHANGING = ("dynamic", "longrope")
"""Kinds of RoPE that turn a key by other angles in a long prompt than in a short one, and engines not as transformers does."""


@dataclass(frozen=True)
class Files:
    """Digests of a model's config and weights, made once for all adapters."""

    directory: Path

    @cached_property
    def fields(self) -> dict[str, Any]:
        return {"config": digest_config(self.directory), "weights": digest_weights(self.directory)}


@dataclass(frozen=True)
class EngineModel:
    """A model as an engine computes with it, without its weights in memory.

    It has the fields of ``kvtool.model.fingerprint.Identity`` that decide a cache. Tokenizer and chat template do not: whoever
    looks for a cache compares token ids. ``quantization`` is what the engine does to the weights beyond what their config
    says, and ``adapter`` the PEFT adapter's directory of one request.
    """

    model: Model
    quantization: str | None = None
    adapter: Path | None = None
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", Files(self.model.directory))

    @classmethod
    def at(
        cls, source: str | Path, *, dtype: str, revision: str | None = None, quantization: str | None = None
    ) -> EngineModel:
        """The model at a directory, or that of a hub id's ``revision`` on this machine.

        ``quantization`` is the engine's setting, which a checkpoint that was saved quantized gives by its config.

        Raises ``ModelError`` for one that is not there, that kvtool would refuse to load, or of which an engine might load
        other files than are hashed.
        """
        is_hub = revision is not None and not Path(source).exists()
        directory, name = locate(f"{source}@{revision}" if is_hub else source, download=False)
        if directory.is_file():
            reason = "is one file, whose weights the engine unpacks in its own way"
            raise ModelError(source, reason, "serve the directory that kvtool connector vllm prints")
        model = Model(directory, name=name, device="cpu", dtype=dtype)
        _refuse_changing_rotations(model)
        _refuse_other_weights(model)
        is_saved_so = getattr(model.config, "quantization_config", None) is not None
        return cls(model, None if is_saved_so else quantization)

    def with_adapter(self, directory: Path) -> EngineModel:
        """The model with the adapter of a request."""
        other = replace(self, adapter=directory)
        object.__setattr__(other, "files", self.files)
        return other

    def take_fingerprint(self) -> None:
        """Hashes the model's files now, while they are what the engine loads. A commit of the hub does not change."""
        if not self.is_pinned:
            _ = self.files.fields
        _ = self._cheap

    @property
    def is_pinned(self) -> bool:
        """Whether it is of the hub, and so named by a digest of its files."""
        return _PINNED.fullmatch(self.model.name) is not None

    def provide_embedding(self) -> None:
        """Gives this process the model's input embedding where a calibration names it, as klt's do."""

        def find_in_model(digest: str) -> Tensor | None:
            self.model.remember_embedding()
            return find(digest)

        provide(find_in_model)

    @cached_property
    def _cheap(self) -> dict[str, Any]:
        adapters = [] if self.adapter is None else [digest_adapter(self.adapter)]
        return {
            "dtype": self.model.dtype_name,
            "quantization": self.quantization,
            "adapters": adapters,
            "rope": rope_parameters(self.model.text_config),
        }

    def difference(self, made_by: Mapping[str, Any], name: str) -> str | None:
        """What tells this model from the one called ``name`` that made an artifact, whose header has ``made_by`` under "model".

        None if a cache of that one is a cache of this one. Weights are hashed once, and not at all where the same commit of the
        hub made it.
        """
        if difference := _first_difference(self._cheap, made_by):
            return difference
        if self.is_pinned and name == self.model.name:
            return None
        return _first_difference(self.files.fields, made_by)


def _refuse_changing_rotations(model: Model) -> None:
    rope = rope_parameters(model.text_config)
    for kind in (rope, *(kind for kind in rope.values() if isinstance(kind, dict))):
        if (changing := kind.get("rope_type")) in _CHANGING:
            raise ModelError(
                model.name, f"has rope_type {changing}, with which engines turn keys by other angles"
            )


def _refuse_other_weights(model: Model) -> None:
    hashed = {path.name for path in weight_files(model.directory)}
    if others := sorted({path.name for path in model.directory.glob("*.safetensors")} - hashed):
        raise ModelError(
            model.directory,
            f"holds {others[0]} beside {min(hashed)}, and an engine may load either",
            "move the one that is not wanted elsewhere",
        )


def _first_difference(own: Mapping[str, Any], made_by: Mapping[str, Any]) -> str | None:
    for name, value in own.items():
        if made_by.get(name) != value:
            return f"{name} is {_short(made_by.get(name))}, the engine's is {_short(value)}"
    return None


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text[:200]
