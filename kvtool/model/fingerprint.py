"""A model's identity, as digests: the same on every machine, whatever its files are called.

Weights are hashed tensor by tensor, so that one file and its shards are the same model. A file is hashed once and
its digests remembered until its size, inode or times change.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3

from kvtool import limits
from kvtool.digest import canonical_json, digest, digest_json
from kvtool.errors import ModelError, StoreError
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import file_state, write_atomic

_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")
_TOKENIZER_SUFFIXES = (".model", ".tiktoken")
_DOWNLOAD_AGAIN = "download or convert the model again"
# Written by the program that saved the model last; they do not change what the model computes.
_VOLATILE = {
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "name_or_path",
    "is_local",
    "local_files_only",
}


@dataclass(frozen=True)
class Identity:
    """Everything that decides what a model computes. Two caches fit together only if all fields are equal."""

    weights: str
    config: str
    tokenizer: str
    chat_template: str
    rope: Mapping[str, Any]
    dtype: str
    quantization: str | None
    adapters: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "adapters": list(self.adapters)}

    @property
    def fingerprint(self) -> str:
        return digest_json(self.to_json())


def digest_config(directory: Path) -> str:
    return digest_json(_without_volatile(_read_json(directory / "config.json")))


def digest_tokenizer(directory: Path) -> str:
    digests: dict[str, str] = {}
    if (path := directory / "tokenizer.json").exists():
        digests[path.name] = str(_remembered(path, _hash_tokenizer))
    if (path := directory / "tokenizer_config.json").exists():
        config = _without_volatile(_read_json(path))
        config.pop("chat_template", None)
        digests[path.name] = digest_json(config)
    for path in sorted(directory.iterdir()):
        if path.name in _TOKENIZER_FILES or path.suffix in _TOKENIZER_SUFFIXES:
            digests[path.name] = digest(path.read_bytes())
    return digest_json(digests)


def digest_weights(directory: Path, *, name: str = "model.safetensors") -> str:
    """Digest over the name, dtype, shape and bytes of every tensor of ``directory``'s safetensors files."""
    tensors: dict[str, Any] = {}
    for path in weight_files(directory, name=name):
        tensors |= file_tensors(path)
    return digest_json(tensors)


def weight_files(directory: Path, *, name: str = "model.safetensors") -> list[Path]:
    """The safetensors files of a model, one or its shards. Raises ``ModelError`` for one that is missing."""
    index = directory / f"{name}.index.json"
    # transformers looks for shards only where there is no single file.
    sharded = index.exists() and not (directory / name).exists()
    names = sorted(set(_read_json(index)["weight_map"].values())) if sharded else [name]
    paths = [directory / file for file in names]
    for file, path in zip(names, paths, strict=True):
        if path.parent != directory or not path.is_file():
            raise ModelError(
                directory,
                f"has no {file}",
                "kvtool loads weights from safetensors files only, never from pickles. Convert the model "
                "with its save_pretrained()",
            )
    return paths


def file_tensors(path: Path) -> dict[str, Any]:
    """Name → [dtype, shape, digest] for one safetensors file, remembered between runs."""
    return dict(_remembered(path, _hash_tensors))


def digest_file(path: Path) -> str:
    """Digest of a whole file, remembered between runs."""
    return str(_remembered(path, _hash_file))


def digest_files(files: Iterable[Path]) -> str:
    """Digest of several files' names and bytes, each remembered between runs."""
    return digest_json([[file.name, digest_file(file)] for file in files])


def _remembered(path: Path, hash_file: Callable[[Path], Any]) -> Any:
    state = file_state(path)
    memory = cache_dir() / "digests" / f"{digest_json([hash_file.__name__, state[0]])}.json"
    try:
        entry = json.loads(memory.read_bytes())
        if entry["state"] == state:
            return entry["digests"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digests = hash_file(path)
    # An unwritable cache directory costs time on the next run, nothing else.
    with suppress(StoreError):
        write_atomic(memory, [canonical_json({"state": state, "digests": digests})])
    return digests


def _hash_tensors(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            size = int.from_bytes(whole[:8], "little")
            if size > limits.HEADER_BYTES:
                raise ValueError(f"its header claims {size} bytes")
            header = json.loads(whole[8 : 8 + size])
            header.pop("__metadata__", None)
            with memoryview(whole) as view:
                for name, entry in header.items():
                    begin, end = (8 + size + offset for offset in entry["data_offsets"])
                    if not 8 + size <= begin <= end <= len(whole):
                        raise ValueError(f"it is cut off: {name} would end at byte {end} of {len(whole)}")
                    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
                    with view[begin:end] as part:
                        hasher.update(part)
                    result[name] = [entry["dtype"], entry["shape"], hasher.hexdigest()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"is not a whole safetensors file ({str(error)[:200]})"
        raise ModelError(path, reason, _DOWNLOAD_AGAIN) from error
    return result


def _hash_tokenizer(path: Path) -> str:
    # Every call of the tokenizer sets these.
    return digest_json({**_read_json(path), "truncation": None, "padding": None})


def _hash_file(path: Path) -> str:
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    hasher.update_mmap(path)
    return str(hasher.hexdigest())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(path.parent, f"has no {path.name}", "name a model's directory") from None
    except ValueError as error:
        raise ModelError(path, f"is not JSON ({error})", _DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(path, "expected a JSON object", _DOWNLOAD_AGAIN)
    return value


def _without_volatile(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in _VOLATILE and not k.startswith("_")}
