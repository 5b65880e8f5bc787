"""``kvtool serve-cache`` as a process, and what a client asks it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

ANSWER_TOKENS = 16


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kvtool serve-cache`` with ``options`` as a process of its own, and its address, which ends in /v1."""
    command = [sys.executable, "-m", "kvtool", "serve-cache", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "/v1 (" in line:
                    break
            else:
                raise RuntimeError("".join(said))
            # What else it says must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, line.split(" (")[0].rpartition(" ")[2]
        finally:
            process.terminate()


@dataclass(frozen=True)
class Asked:
    document: str | None
    question: str


def ask_once(http: httpx.Client, url: str, model: str, asked: Asked) -> tuple[str, float]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": asked.question}],
        "documents": [asked.document] if asked.document else None,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    started, first, text = time.monotonic(), 0.0, ""
    with http.stream("POST", f"{url}/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for said in _events(answer.iter_lines()):
            for choice in said["choices"]:
                text += choice["delta"].get("content", "")
                if text and not first:
                    first = time.monotonic() - started
    return text, first


def _events(lines: Iterator[str]) -> Iterator[dict[str, list[dict[str, dict[str, str]]]]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError(event["error"]["message"])
            yield event
