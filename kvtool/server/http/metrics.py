"""What is counted, in Prometheus' words; names after vLLM's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics:
    """One server's; a registry of its own, so that several in one process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kvtool:requests", "Requests, by route and status", ["path", "status"], registry=registry
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
        self.output_token = self._seconds(
            "time_per_output_token", "Between two tokens of an answer, on average, of all its choices"
        )
        self.latency = self._seconds("e2e_request_latency", "From a request to the end of its answer")
        self.loads = self._seconds("cache_load", "Reading and decoding one document's cache")
        self.ways = Counter(
            "kvtool:cache_ways",
            "Caches of documents that came into memory, by their variant, or as prefilled anew",
            ["variant"],
            registry=registry,
        )
        self.blends = self._seconds(
            "cache_blend", "Reading and decoding several documents' caches, and recomputing"
        )
        self.bytes_read = Counter("kvtool:cache_read_bytes", "Bytes of caches read", registry=registry)
        self.running = Gauge("kvtool:num_requests_running", "Answers on their way", registry=registry)
        self.waiting = Gauge(
            "kvtool:num_requests_waiting", "Requests that wait for memory or caches", registry=registry
        )
        self.memory = Gauge(
            "kvtool:cache_memory_bytes", "Bytes that caches take in memory", registry=registry
        )
        self.memory_limit = Gauge(
            "kvtool:cache_memory_limit_bytes", "Bytes that caches may take in memory", registry=registry
        )

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(f"kvtool:{name}_seconds", what, buckets=_SECONDS, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
