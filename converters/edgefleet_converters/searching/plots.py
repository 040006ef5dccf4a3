"""The Pareto plot of a search, as SVG that stands alone. Equal input gives equal text."""

import io
from typing import Any

from edgefleet_converters.searching.candidates import Candidate
from edgefleet_converters.searching.found import Found

CHOSEN, KEPT, LOST, REFUSED = "#0b6e4f", "#3b7dd8", "#9aa5b1", "#c8553d"
# Of names above or below their point, in points of print.
_HEIGHTS = (6, -13, 18, -25)
_MARKERS = {"onnxruntime": "o", "litert": "s"}


def pareto(found: Found) -> str:
    """Return two plots side by side: bytes and drop, bytes and latency.

    Args:
        found: with at least one sound candidate.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "edgefleet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        by_drop, by_latency = figure.subplots(1, 2)
        _drops(by_drop, found)
        _latencies(by_latency, found)
        for axes in (by_drop, by_latency):
            _log_axis(axes.set_xscale, axes.xaxis)
            axes.set_xlabel("size of the file, bytes (smaller is better)")
            axes.grid(alpha=0.25, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def colour(found: Found, candidate: Candidate) -> str:
    """Return the colour of a candidate in plots and tables."""
    if candidate.faults:
        return REFUSED
    if found.chosen_by(candidate):
        return CHOSEN
    return KEPT if candidate.name in found.front else LOST


def _drops(axes: Any, found: Found) -> None:
    for place, candidate in enumerate(found.sound):
        if candidate.evidence is None:
            continue
        drop = candidate.evidence.drop
        axes.errorbar(
            candidate.size_bytes,
            drop.point,
            yerr=[[drop.point - drop.low], [drop.high - drop.point]],
            fmt=_MARKERS[candidate.runtime],
            color=colour(found, candidate),
            elinewidth=1,
            capsize=2,
            zorder=_layer(found, candidate),
        )
        _name(axes, found, candidate, drop.point, place)
    budget = found.plan.general.max_drop
    # What loses everything must not press all others onto one line: logarithmic beyond the budget.
    axes.set_yscale("symlog", linthresh=max(budget, 0.001))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(budget, color=REFUSED, linestyle="--", linewidth=1)
    axes.annotate("budget", (1, budget), xycoords=("axes fraction", "data"), color=REFUSED,
                  ha="right", va="bottom")  # fmt: skip
    axes.set_ylabel(f"drop of {found.metric} (lower is better)")
    axes.set_title("What is lost, with its interval", loc="left")


def _latencies(axes: Any, found: Found) -> None:
    for place, candidate in enumerate(found.sound):
        axes.plot(
            candidate.size_bytes,
            candidate.latency_us.p50,
            _MARKERS[candidate.runtime],
            color=colour(found, candidate),
            zorder=_layer(found, candidate),
        )
        _name(axes, found, candidate, candidate.latency_us.p50, place)
    _log_axis(axes.set_yscale, axes.yaxis)
    axes.set_ylabel("median of one row here, µs (lower is better)")
    axes.set_title("What it costs: bytes and time", loc="left")


def _layer(found: Found, candidate: Candidate) -> int:
    """Return how far in front a point lies: what was chosen before all others."""
    return (LOST, KEPT, CHOSEN).index(colour(found, candidate)) + 2


def _name(axes: Any, found: Found, candidate: Candidate, height: float, place: int) -> None:
    """Write the name beside those that were chosen, and float32; neighbours at other heights."""
    if found.chosen_by(candidate) or candidate.lossless:
        axes.annotate(
            candidate.name,
            (candidate.size_bytes, height),
            xytext=(6, _HEIGHTS[place % len(_HEIGHTS)]),
            textcoords="offset points",
            fontsize=9,
            color=colour(found, candidate),
        )


def _log_axis(set_scale: Any, axis: Any) -> None:
    """Make an axis logarithmic, with figures that people read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    set_scale("log")
    low, high = axis.get_view_interval()
    is_wide = high > 10 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_wide else (1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(_figure))
    axis.set_minor_formatter(NullFormatter())


def _figure(value: float, place: int) -> str:
    del place
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
