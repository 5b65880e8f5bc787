"""What is counted, in Prometheus' words; names after vLLM's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics:
    """One server's; a registry of its own, so that several in one process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kvtool:requests", "Requests, by path and status", ["path", "status"], registry=registry
        )
        self.queries = Counter("kvtool:prefix_cache_queries", "Prompts looked up", registry=registry)
        self.hits = Counter("kvtool:prefix_cache_hits", "Prompts with a cache", registry=registry)
        self.prompt_tokens = Counter("kvtool:prompt_tokens", "Tokens of prompts", registry=registry)
        self.cached_tokens = Counter(
            "kvtool:cached_tokens", "Tokens of prompts taken from caches", registry=registry
        )
        self.generation_tokens = Counter("kvtool:generation_tokens", "Tokens said", registry=registry)
        self.first_token = Histogram(
            "kvtool:time_to_first_token_seconds",
            "From a request to its first token",
            ["cached"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("kvtool:num_requests_running", "Answers on their way", registry=registry)
        self.memory = Gauge(
            "kvtool:cache_memory_bytes", "Bytes that caches take in memory", registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
