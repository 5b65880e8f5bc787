"""GGUF files, converted once into the cache directory.

transformers unpacks a GGUF at every load, which takes longer than prefilling a document. The converted model is
bfloat16 safetensors and loads in about a second.
"""

from __future__ import annotations

import io
import logging
import shutil
import struct
import uuid
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch
import transformers

from kvtool.errors import ModelError
from kvtool.model.fingerprint import digest_file
from kvtool.model.hf_logging import quiet
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import as_store_errors

# Part of the directory's name: raised when the conversion's result changes.
CONVERSION = "bf16-1"

log = logging.getLogger(__name__)


def converted(path: Path) -> Path:
    """The directory of safetensors that ``path`` converts to, made now if it is missing.

    Raises ``ModelError`` if the file is no GGUF, or of an architecture that transformers cannot unpack;
    ``StoreError`` where the cache directory cannot be written to.
    """
    target = cache_dir() / "converted" / f"{digest_file(path)}-{CONVERSION}"
    if target.is_dir():
        return target
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(path, "is not a GGUF file", "download it again")
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
    # Before the half minute that converting takes.
    with as_store_errors(target):
        temporary.mkdir(parents=True)
    try:
        _convert(path, temporary)
        # Two processes may convert at once; the results are equal, the first to arrive stays.
        with suppress(OSError):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert(path: Path, target: Path) -> None:
    log.info("converting %s, once; this takes about half a minute", path.name)
    # The conversion's progress bar goes to stderr whatever transformers' own setting says.
    with quiet(), redirect_stderr(io.StringIO()):
        try:
            # Without dequantize the model stays packed and cannot be saved.
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except (ValueError, KeyError, NotImplementedError, OSError, struct.error) as error:
            reason = f"transformers cannot convert this GGUF ({error})"
            raise ModelError(path, reason, "use the model's safetensors instead") from error
        with as_store_errors(target):
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
