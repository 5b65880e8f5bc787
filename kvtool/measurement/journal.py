"""A journal of measurements, so that an interrupted evaluation goes on, and a wider one adds to it.

A measurement is found by everything that it depends on. Times are not kept: they are ratios within one run.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from kvtool.codecs import Pipeline
from kvtool.digest import Json, digest, digest_json
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import write_atomic


def key(*parts: Json) -> str:
    """The key of a measurement, from what it depends on, as JSON. kvtool's code and its libraries are always part of it."""
    return digest_json([_code(), torch.__version__, transformers.__version__, *parts])


def pipeline_identity(pipeline: Pipeline) -> Json:
    """What a pipeline's results depend on, for ``key``."""
    stages = {type(stage) for stage in pipeline.stages}
    # Plug-ins' files are no part of kvtool's code.
    plugins = [stage for stage in stages if not stage.__module__.startswith("kvtool.")]
    files = sorted(map(inspect.getfile, plugins))
    return [pipeline.to_config(), *(digest(Path(file).read_bytes()) for file in files)]


def recall(key: str) -> Any:
    """The measurement of that key, or None."""
    try:
        return json.loads(_path(key).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def remember(key: str, measured: Json) -> None:
    """Keeps a measurement.

    Raises ``StoreError`` if the cache directory cannot be written to: an evaluation takes too long to be lost.
    """
    # Broken caches give NaN and infinity, which canonical JSON does not have.
    write_atomic(_path(key), [json.dumps(measured).encode()])


@functools.cache
def _code() -> str:
    """Digest of the package's source files. A version number would be the same for two states of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = os.walk(package, followlinks=True)
    files = [Path(folder) / name for folder, _, names in folders for name in names]
    code = sorted(path for path in files if path.suffix == ".py")
    return digest_json([[str(path.relative_to(package)), digest(path.read_bytes())] for path in code])


def _path(key: str) -> Path:
    return cache_dir() / "evaluations" / key[:2] / f"{key}.json"
