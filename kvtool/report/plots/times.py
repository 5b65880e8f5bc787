"""Times as ratios of the full prefill's, which was measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report import words
from kvtool.report.numbers import ABSENT, Json, plain
from kvtool.report.plots import style
from kvtool.report.plots.svg import Picture, drawn


def time_bars(shown: Sequence[Json], prefill_seconds: float) -> Picture:
    """Bars with the ids ``time-<faster|encode|load>-<index in shown>``; each row is a candidate."""
    rows = [(i, c) for i, c in enumerate(shown) if c["times"]]
    sides = {
        "faster": ("first token, × sooner", words.faster),
        "encode": ("encoding, % of prefill", lambda c: words.percent(c, "encode_seconds", prefill_seconds)),
        "load": ("loading, % of prefill", lambda c: words.percent(c, "load_seconds", prefill_seconds)),
    }
    panels = [(key, title, read) for key, (title, read) in sides.items() if any(read(c) for _, c in rows)]
    with style.styled():
        height = 0.21 * len(rows) + 0.1
        total = height + 0.8
        figure = style.figure(total)
        wide = 0.755 / (len(panels) + 0.5)
        left = 0.235
        for n, (key, title, read) in enumerate(panels):
            width = wide * (1.5 if n == 0 else 1) - 0.02
            axes = figure.add_axes((left, 0.4 / total, width, height / total))
            left += width + 0.02
            values = {i: read(c) for i, c in rows}
            longest = max(v for v in values.values() if v is not None)
            axes.set(xlim=(0, 1.25 * longest), ylim=(len(rows) - 0.5, -0.5))
            axes.set_title(title)
            style.ticks(axes, "x", f"time-{key}", _steps(longest))
            names = [style.shortened(c["name"]) for _, c in rows]
            style.ticks(axes, "y", f"time-{key}", range(len(rows)), names if n == 0 else [""] * len(rows))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
            axes.set_axisbelow(True)
            for row, (i, candidate) in enumerate(rows):
                if (value := values[i]) is None:
                    axes.text(0.03 * longest, row, ABSENT, va="center", color=style.MUTED)
                    continue
                axes.barh(row, value, height=0.62, color=style.BAR)[0].set_gid(f"time-{key}-{i}")
                end = value
                if key == "faster" and (ratio := candidate["times"]["ttft_speedup"]):
                    axes.hlines(row, ratio["low"], ratio["high"], color=style.INK, lw=1.2)
                    end = max(value, ratio["high"])
                axes.text(end + 0.02 * longest, row, _short(value), va="center", color=style.INK)
            if key == "faster":
                axes.axvline(1, color=style.INK, lw=0.9, ls=(0, (3, 2)))
        says = words.times(shown, prefill_seconds)
        return Picture(drawn(figure, "time", "Bars of times relative to a full prefill", {}), says)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else plain(float(f"{value:.2g}"))


def _steps(longest: float) -> list[float]:
    """Round numbers from 0 to about ``longest``, three to six of them."""
    power = 10.0 ** (len(f"{longest:.0f}") - 1) if longest >= 1 else 1.0
    while power > longest:
        power /= 10
    step = next(power * share for share in (5, 2, 1, 0.5, 0.25) if longest >= 2 * power * share)
    return [n * step for n in range(int(longest / step) + 1)]
