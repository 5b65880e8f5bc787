"""A real ``vllm serve``, asked with token ids. It runs in the environment that ``make engines`` makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.folders import BUILD

PYTHON = BUILD / "engines" / "vllm" / "bin" / "python"
START_SECONDS = 600
ANSWER_TOKENS = 16

MENDED = '''"""vLLM 0.32 on a CPU rotates the queries and keys of latent attention wrongly: it takes strides for sizes."""


def mend():
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    rotate = RotaryEmbedding.forward_cpu

    def forward_cpu(self, positions, query, key=None):
        if key is None or query.ndim < 3:
            return rotate(self, positions, query, key)
        flat = rotate(self, positions, query.flatten(1).contiguous(), key.flatten(1).contiguous())
        return flat[0].view(query.shape), flat[1].view(key.shape)

    RotaryEmbedding.forward_cpu = forward_cpu
'''


@dataclass(frozen=True)
class Answer:
    """Token ids of a greedy answer, and how many of the prompt's the engine did not compute."""

    token_ids: tuple[int, ...]
    cached: int


@dataclass(frozen=True)
class Engine:
    url: str
    log: Path
    pid: int
    model: str = "served"

    def answer(self, prompt: Sequence[int], max_tokens: int = ANSWER_TOKENS, **fields: Any) -> Answer:
        """The greedy answer to a prompt of token ids."""
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **fields,
        }
        response = self.post("/v1/completions", body)
        details = response["usage"].get("prompt_tokens_details") or {}
        return Answer(tuple(response["choices"][0]["token_ids"]), details.get("cached_tokens") or 0)

    def first_token(self, prompt: Sequence[int], max_tokens: int = 1) -> tuple[float, float]:
        """Seconds to the first token of an answer, and to its last."""
        body = {"model": self.model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
        request = self._request("/v1/completions", {**body, "ignore_eos": True, "stream": True})
        began, first = time.monotonic(), 0.0
        with urllib.request.urlopen(request, timeout=600) as response:
            for line in response:
                if line.startswith(b"data: {") and not first:
                    first = time.monotonic() - began
        return first, time.monotonic() - began

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        with urllib.request.urlopen(self._request(path, body), timeout=120) as response:
            return json.loads(response.read())

    def _request(self, path: str, body: Mapping[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        return urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)

    def metrics(self) -> dict[str, float]:
        """The connector's counters: name → sum."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        values = (line.rsplit(" ", 1) for line in lines if line.startswith("vllm:kvtool_"))
        return {
            name.partition("{")[0].removeprefix("vllm:kvtool_").removesuffix("_total"): float(value)
            for name, value in values
            if "_created" not in name
        }


@contextmanager
def serve(
    model: Path, folder: Path, *options: str, dtype: str = "float32", context: int = 2048, **extra: Any
) -> Iterator[Engine]:
    """Serves ``model``; with the connector where ``extra``, its settings, name a store. Its log is in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.cli.main", "serve", str(model), *options]
    command += ["--served-model-name", "served", "--dtype", dtype]
    command += ["--max-model-len", str(context), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-prompt-tokens-details", "--api-server-count", "1"]
    if extra:
        transfer = {
            "kv_connector": "KvtoolConnector",
            "kv_connector_module_path": "kvtool.connectors.vllm",
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": extra,
        }
        command += ["--kv-transfer-config", json.dumps(transfer)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(_mended(folder)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "OMP_NUM_THREADS": "2",
    }
    log = folder / f"vllm-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            engine = Engine(f"http://127.0.0.1:{port}", log, process.pid)
            _await_health(engine, process)
            yield engine
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_health(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{engine.url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start:\n{engine.log.read_text()[-6000:]}")


def _mended(folder: Path) -> Path:
    """A folder with a plugin of vLLM's in it, which every process of its loads."""
    place = folder / "plugins"
    if not place.exists():
        metadata = place / "mended-1.dist-info"
        metadata.mkdir(parents=True)
        (place / "mended.py").write_text(MENDED)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mended\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nmended = mended:mend\n")
    return place
