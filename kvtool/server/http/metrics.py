"""Prometheus metrics, named after vLLM's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics:
    """One server's metrics, in a registry of its own: several servers of one process share nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests, by route and status", "path", "status")
        self.queries = self._counter("prefix_cache_queries", "Prompts looked up")
        self.hits = self._counter("prefix_cache_hits", "Prompts with a cache")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = self._counter("cached_tokens", "Tokens of prompts taken from caches")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers")
        self.first_token = self._histogram(
            "time_to_first_token", "From a request to its first token", "cached"
        )
        self.output_token = self._histogram(
            "time_per_output_token", "Between two tokens of an answer, on average, of all its choices"
        )
        self.latency = self._histogram("e2e_request_latency", "From a request to the end of its answer")
        self.loads = self._histogram("cache_load", "Reading and decoding one document's cache")
        self.sources = self._counter(
            "cache_sources",
            "Documents' caches that came into memory, by the variant that was loaded, or prefilled",
            "source",
        )
        self.blends = self._histogram(
            "cache_blend", "Reading and decoding several documents' caches, and recomputing"
        )
        self.bytes_read = self._counter("cache_read_bytes", "Bytes of caches read")
        self.running = self._gauge("num_requests_running", "Answers being generated")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for memory or caches")
        self.caches = self._gauge("cache_memory_caches", "Caches in memory")
        self.memory = self._gauge("cache_memory_bytes", "Bytes that caches take in memory")
        self.memory_limit = self._gauge("cache_memory_limit_bytes", "Bytes that caches may take in memory")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"kvtool:{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"kvtool:{name}", documentation, registry=self.registry)

    def _histogram(self, name: str, documentation: str, *labels: str) -> Histogram:
        name = f"kvtool:{name}_seconds"
        return Histogram(name, documentation, labels, buckets=_SECONDS, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
