"""What the server counts."""

from __future__ import annotations

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from kvtool.server.http.metrics import Metrics

INTRO = """What `GET /metrics` of `kvtool serve-cache` counts, in Prometheus' text format. Names follow vLLM's where there is one.

A histogram has three series: `NAME_bucket` with the label `le`, `NAME_sum` and `NAME_count`."""

SUFFIX = {"counter": "_total"}


def page() -> str:
    registry = Metrics().registry
    rows = [
        (
            code(f"{metric.name}{SUFFIX.get(metric.type, '')}"),
            metric.type,
            # prometheus_client has no public name for a metric's labels.
            ", ".join(map(code, registry._names_to_collectors[metric.name]._labelnames)) or "–",
            metric.documentation,
        )
        for metric in registry.collect()
    ]
    return whole_page(
        "Metrics",
        "kvtool/server/http/metrics.py",
        INTRO,
        table(("metric", "type", "labels", "meaning"), sorted(rows)),
    )
