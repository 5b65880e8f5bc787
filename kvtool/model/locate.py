"""Finds a model's files by what a user calls it, and tells whether they have changed, without loading any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from kvtool.errors import ModelError, first_line
from kvtool.model.embedded.file import embedded_file
from kvtool.system.files import file_state

EMBEDDED = "embedded"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_TEMPLATES = "additional_chat_templates"
"""The folder of a model's further chat templates, which its tokenizer loads too."""
_DEVICES = ("/dev/nvidia*", "/dev/kfd", "/dev/dri/render*")
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def locate(source: str | Path | None, *, download: bool = True) -> tuple[Path, str]:
    """The directory or ``.gguf`` file of the model ``source``, and the model's name. Raises as ``load_model`` does.

    What is not on this machine is downloaded, or refused without ``download``.
    """
    if source is None or source == EMBEDDED:
        file = embedded_file()
        return file, file.stem
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(path, "no such GGUF file")
        return path, path.stem
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        raise ModelError(path, "is a file", "expected a model's directory, a .gguf file or a hub id")
    return _from_hub(str(source), download)


def model_state(source: str | Path | None, adapter: str | Path | None = None) -> dict[str, Any]:
    """What differs, as JSON, once another model would be loaded: its files, its adapter's, the devices of this machine."""
    path, name = locate(source)
    devices = sorted(str(node) for pattern in _DEVICES for node in Path("/").glob(pattern[1:]))
    return {
        "name": name,
        "files": [file_state(file) for file in model_files(path)],
        "adapter": adapter and [file_state(file) for file in model_files(Path(adapter))],
        "devices": [devices, *(os.environ.get(name) for name in _DEVICE_VARIABLES)],
    }


def model_files(path: Path) -> list[Path]:
    """All files of a model, or of an adapter, in a directory; the file itself of one in a file."""
    files = [path] if path.is_file() else [*sorted(path.iterdir()), *sorted((path / _TEMPLATES).glob("*"))]
    return [file for file in files if file.is_file()]


def _from_hub(source: str, download: bool) -> tuple[Path, str]:
    repo, _, revision = source.partition("@")
    try:
        path = Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=_HUB_FILES, local_files_only=not download
            )
        )
    except HFValidationError:
        raise ModelError(source, "no such directory, and not a hub id (owner/name@revision)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            source,
            f"no such directory, and the hub did not give a model of that name ({first_line(error)})",
            "check the name, the network, HF_HOME and HF_HUB_OFFLINE",
        ) from error
    # The snapshot's directory is named by the commit that the revision resolved to.
    return path, f"{repo}@{path.name}"
