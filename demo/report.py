"""What the demo found: `report.json` for programs, `report.html` and a table for people.

Every figure comes from the hub's API or from what the demo itself measured in this run.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
COLOURS = {"1": "#4477aa", "2": "#228833", "3": "#ee6677"}
OTHER = "#888888"


@dataclass(frozen=True)
class Window:
    """One reported window: when it ended (Unix seconds), whose it was and how right it was."""

    at: float
    device: str
    version: str
    labelled: int
    correct: int
    psi: list[float]


@dataclass
class Findings:
    """Everything that goes into the report.

    Attributes:
        report: the content of `report.json`.
        started_at: Unix seconds; plots count from it.
        windows: all windows of the run.
        marks: (Unix seconds, text) of what happened when.
        columns: feature names, in the order of each window's PSI.
        shifted_at: when the world changed, Unix seconds.
    """

    report: Json
    started_at: float
    columns: list[str]
    shifted_at: float = 0.0
    windows: list[Window] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)


def write(findings: Findings, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(findings.report, indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    page = jinja2.Template(PAGE, autoescape=True).render(
        report=findings.report,
        accuracy=_svg(_plot_accuracy(findings)),
        drift=_svg(_plot_drift(findings)),
        versions=_svg(_plot_versions(findings)),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def show(report: Json, console: Console) -> None:
    """Print the report's main figures as tables."""
    models = Table(title="Versions", title_justify="left")
    for name in ("version", "variant", "bytes", "accuracy", "sha256"):
        models.add_column(name, justify="right" if name in ("bytes", "accuracy") else "left")
    for version in report["versions"]:
        for variant in version["variants"]:
            models.add_row(
                version["version"],
                variant["format"],
                f"{variant['bytes']:,}",
                f"{variant['accuracy']:.3f}",
                variant["sha256"][:12],
            )
    console.print(models)
    rollouts = Table(title="Rollouts", title_justify="left")
    for name in ("version", "strategy", "stages", "outcome", "devices"):
        rollouts.add_column(name)
    for rollout in report["rollouts"]:
        rollouts.add_row(
            rollout["version"],
            rollout["strategy"],
            " → ".join(str(stage) for stage in rollout["stages"]),
            rollout["outcome"],
            str(rollout["devices"]),
        )
    console.print(rollouts)
    facts = Table(title="What was seen", title_justify="left", show_header=False)
    drift, accuracy = report["drift"], report["accuracy"]
    facts.add_row("devices", f"{report['devices']['count']} ({report['devices']['profiles']})")
    facts.add_row(
        "false fleet alarm before the shift", str(drift["fleet_false_alarm_before_shift"])
    )
    facts.add_row("fleet drift detected", f"{drift['fleet_detected']} (scope {drift['scope']})")
    facts.add_row(
        "stuck device", f"{drift['stuck_device']}; the hub named {drift['stuck_device_named']}"
    )
    for name, value in accuracy.items():
        facts.add_row(f"accuracy {name}", f"{value:.3f}")
    for refusal in report["refused"]:
        facts.add_row(f"refused: {refusal['what']}", f"{refusal['by']}: {refusal['reason']}")
    facts.add_row("bytes a report", f"{report['bytes_per_report']:.0f}")
    facts.add_row("seconds", f"{report['seconds']:.0f}")
    console.print(facts)


def _plot_accuracy(findings: Findings) -> Figure:
    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots()
    by_version: dict[str, list[Window]] = {}
    for window in findings.windows:
        if window.labelled:
            by_version.setdefault(window.version, []).append(window)
    for version, windows in sorted(by_version.items()):
        times = np.array([window.at - findings.started_at for window in windows])
        edges = np.arange(times.min(), times.max() + 5.0, 5.0)
        slot = np.digitize(times, edges)
        points = []
        for index in np.unique(slot):
            here = [w for w, s in zip(windows, slot, strict=True) if s == index]
            share = sum(w.correct for w in here) / sum(w.labelled for w in here)
            points.append((float(times[slot == index].mean()), share))
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            label=f"version {version}",
            ms=3,
            color=COLOURS.get(version, OTHER),
        )
    for at, text in findings.marks:
        axes.axvline(at - findings.started_at, color="#bbbbbb", lw=0.8)
        axes.text(
            at - findings.started_at + 0.8,
            0.02,
            text,
            rotation=90,
            fontsize=7,
            color="#555555",
            transform=axes.get_xaxis_transform(),
            va="bottom",
        )
    axes.set(xlabel="seconds", ylabel="accuracy on labelled rows", ylim=(0, 1.02))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _plot_drift(findings: Findings) -> Figure:
    devices = sorted({window.device for window in findings.windows})
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2, sharey=True)
    halves = (
        (left, "before the change", [w for w in findings.windows if w.at < findings.shifted_at]),
        (
            right,
            "after it, under version 1",
            [w for w in findings.windows if w.at >= findings.shifted_at and w.version == "1"],
        ),
    )
    image = None
    for axes, title, windows in halves:
        grid = np.zeros((len(devices), len(findings.columns)))
        for row, device in enumerate(devices):
            own = [w.psi for w in windows if w.device == device and w.psi]
            if own:
                grid[row] = np.array(own[-1])
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=2)
        axes.set(title=title, xlabel="pixel", yticks=range(len(devices)), yticklabels=devices)
        axes.tick_params(labelsize=7)
    if image is not None:
        figure.colorbar(image, ax=[left, right], label="PSI (2 and more)")
    return figure


def _plot_versions(findings: Findings) -> Figure:
    devices = sorted({window.device for window in findings.windows})
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    shown: set[str] = set()
    for row, device in enumerate(devices):
        for window in findings.windows:
            if window.device == device:
                label = f"version {window.version}"
                axes.plot(
                    window.at - findings.started_at,
                    row,
                    "s",
                    ms=5,
                    color=COLOURS.get(window.version, OTHER),
                    label=None if label in shown else label,
                )
                shown.add(label)
    axes.set(xlabel="seconds", yticks=range(len(devices)), yticklabels=devices)
    axes.tick_params(labelsize=7)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704  # our own drawing, no input in it


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>edgefleet: demo report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem;
       border-bottom: 1px solid #ddd; vertical-align: top } td.n, th.n { text-align: right }
code { font-size: .85em } svg { max-width: 100%; height: auto }
.ok { color: #228833 } .bad { color: #cc3311 }
</style></head><body>
<h1>edgefleet: the whole loop on {{ report.devices.count }} devices</h1>
<p>{{ "%.0f"|format(report.seconds) }} seconds, from training to the last rollback. Every figure
was measured in this run.</p>
<h2>Accuracy over time, by version</h2>{{ accuracy }}
<p>All cameras, the stuck one among them. Cameras under the new light: version 1
{{ "%.3f"|format(report.accuracy.v1_before_shift) }} before the world changed,
{{ "%.3f"|format(report.accuracy.v1_after_shift) }} after it; version 2
{{ "%.3f"|format(report.accuracy.v2_after_shift) }}, on rows that it had never seen.</p>
<h2>Drift by feature and device</h2>{{ drift }}
<p>Fleet alarm before the change:
<b class="{{ 'bad' if report.drift.fleet_false_alarm_before_shift else 'ok' }}">
{{ "yes" if report.drift.fleet_false_alarm_before_shift else "none" }}</b>.
After it the hub's verdict was <b>{{ report.drift.scope }}</b>. The camera that was stuck was
<code>{{ report.drift.stuck_device }}</code>; the hub named
<code>{{ report.drift.stuck_device_named }}</code>.</p>
<h2>Which version each device ran</h2>{{ versions }}
<h2>Rollouts</h2>
<table><tr><th>version</th><th>strategy</th><th>devices a stage</th><th>outcome</th>
<th class="n">devices</th></tr>
{% for r in report.rollouts %}<tr><td>{{ r.version }}</td><td>{{ r.strategy }}</td>
<td>{{ r.stages|join(" → ") }}</td><td>{{ r.outcome }}</td><td class="n">{{ r.devices }}</td></tr>
{% endfor %}</table>
<h2>Versions</h2>
<table><tr><th>version</th><th>variant</th><th class="n">bytes</th><th class="n">accuracy</th>
<th>sha256</th></tr>
{% for v in report.versions %}{% for x in v.variants %}<tr><td>{{ v.version }}</td>
<td>{{ x.format }}</td><td class="n">{{ "{:,}".format(x.bytes) }}</td>
<td class="n">{{ "%.3f"|format(x.accuracy) }}</td><td><code>{{ x.sha256[:16] }}</code></td></tr>
{% endfor %}{% endfor %}</table>
<h2>Refused by devices</h2>
<table><tr><th>what</th><th>by</th><th>reason</th></tr>
{% for x in report.refused %}<tr><td>{{ x.what }}</td>
<td>{{ x.by }}</td><td>{{ x.reason }}</td></tr>
{% endfor %}</table>
<p>A window report is {{ "%.0f"|format(report.bytes_per_report) }} bytes on the wire.</p>
</body></html>
"""
