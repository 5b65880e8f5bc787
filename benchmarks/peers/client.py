"""kvtool's side of the peers: starts a peer's worker in its own environment, and has it restore tensors.

worker.py says what goes over the pipe. A peer sees neither this process's Python path nor an accelerator, since not all
of them can use one, nor the network.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LINES = 20
"""Of a peer's stderr, in an error."""


class PeerError(RuntimeError):
    """A peer could not be started, ended, or answered an error; the message ends with its last lines of stderr."""


@dataclass(frozen=True)
class Method:
    """``paper``: arXiv id or empty. ``parameters``: their defaults."""

    summary: str
    paper: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Restored:
    """``tensors``: as they were given, in float32, or pruned, of prefix and segment together, if ``covers_prefix``.

    ``nbytes``: all that the peer would store for what ``tensors`` covers; ``parts``: by what they hold.
    """

    tensors: dict[str, Tensor]
    nbytes: int
    parts: dict[str, int]
    encode_seconds: float
    decode_seconds: float
    covers_prefix: bool


class Peer:
    """A peer's worker, from ``with Peer(python, script) as peer`` on.

    ``name``, ``version`` and ``methods`` are what it says of itself. Raises ``PeerError``.
    """

    name: str
    version: str
    methods: dict[str, Method]

    def __init__(self, python: Path, script: Path) -> None:
        self._python, self._script = python, script

    def __enter__(self) -> Self:
        if not self._python.exists():
            raise PeerError(f"{self._python}: not there; make it with `make peers`")
        self._folder = tempfile.TemporaryDirectory(prefix="kvtool-peer-")
        self._stderr = (Path(self._folder.name) / "stderr.txt").open("w+", errors="replace")
        # Threads that spin while they wait take tens of times as long where other processes want the same cores.
        settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [self._python, "-E", self._script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **settings},
            encoding="utf-8",
        )
        try:
            about = self._read("start")
        except BaseException:
            self._end()
            raise
        self.name, self.version = about["peer"], about["version"]
        self.methods = {name: Method(**method) for name, method in about["methods"].items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def restore(
        self,
        method: str,
        parameters: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        model_directory: Path,
        *,
        repeats: int = 1,
    ) -> Restored:
        """``tensors`` through ``method`` and back; seconds are medians of ``repeats`` runs.

        ``tensors``: ``token_ids`` [T], ``prefix_ids`` [P], and for each layer ``layers.0000.keys`` [H, T, D] and
        ``layers.0000.values`` [H, T, Dv], keys with RoPE applied, without the prefix.
        """
        given, out = (Path(self._folder.name) / f"{name}.safetensors" for name in ("in", "out"))
        save_file({name: _as_sent(name, tensor) for name, tensor in tensors.items()}, given)
        request = {
            "method": method,
            "parameters": dict(parameters),
            "kv": str(given),
            "out": str(out),
            "repeats": repeats,
            "model": str(model_directory),
        }
        answer = self._ask(method, request)
        restored = load_file(out)
        out.unlink()
        for name, tensor in tensors.items():
            if name not in restored or not (answer["covers_prefix"] or restored[name].shape == tensor.shape):
                raise PeerError(f"{self._script.name}: {method}: {name} came back missing or misshapen")
        return Restored(tensors=restored, nbytes=answer.pop("bytes"), **answer)

    def _ask(self, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: reading says so, and why
        answer = self._read(method)
        if "error" in answer:
            raise PeerError(f"{self._script.name}: {method}: {answer['error']}\n{self._last_lines()}")
        return answer

    def _read(self, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PeerError(
                f"{self._script.name}: {doing}: ended with exit code {code}\n{self._last_lines()}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_lines(self) -> str:
        self._stderr.flush()
        lines = Path(self._stderr.name).read_text(errors="replace").splitlines()
        return "\n".join(lines[-LINES:])

    def _end(self) -> None:
        """The worker ends with its stdin; one that does not, in the middle of something, is killed."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._stderr.close()
        self._folder.cleanup()


def _as_sent(name: str, tensor: Tensor) -> Tensor:
    dtype = torch.float32 if name.startswith("layers.") else torch.int32
    return (
        tensor.to(dtype, copy=True).contiguous().cpu()
    )  # a copy: safetensors refuses tensors that share memory
