"""The report of a search as one HTML page that needs nothing else: no scripts, fonts or pictures.

It is written for somebody who has read none of our documents: what each board gets comes first,
then a picture, then every variant with the reason why it lost, and at the end what the words mean.
"""

from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import Any

from edgefleet_converters.searching import plots
from edgefleet_converters.searching.candidates import Candidate
from edgefleet_converters.searching.choice import Choice
from edgefleet_converters.searching.found import Found, budget_words, loss_words

# Layers in the chart of sensitivities; the rest are the least sensitive ones.
_MAX_BARS = 30

_WORDS = {
    "variant": "The same model in another form: other arithmetic (int8, float16), fewer weights,"
    " another runtime. Its answers may differ a little from the original's.",
    "drop": "How much worse the variant is than the original on the same held-out rows. The"
    " interval says between which values the true drop lies; few rows give a wide interval.",
    "within, over, undecided": "A drop is within its budget if the upper end of the interval is,"
    " over if even the lower end is above it, else undecided: more rows are needed. Only what is"
    " proven to be within is chosen, unless the budgets say otherwise.",
    "× float32": "Time of the variant divided by that of a model that was not quantized, taken in"
    " turns. Above 1 is slower; such a variant is never chosen.",
    "sent": "Bytes that travel to a device, compressed.",
    "front": "Variants that no other beats in size, time, drop and memory at once. The best choice"
    " for any budget is among them.",
}


def html(found: Found) -> str:
    """Return the page."""
    title = escape(f"{found.model} {found.version}: which variant for which board")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_style()}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="lead">{escape(_lead(found))}</p>',
            '<div class="boards">',
            *(_board(found, choice) for choice in found.choices),
            "</div>",
            "<h2>Size, loss and time of everything that works</h2>",
            _legend(),
            f"<figure style='margin:0'>{plots.pareto(found)}</figure>",
            f"<h2>Everything that was tried, and why it lost</h2>{_table(found)}",
            *_sensitivities(found),
            *_unmade(found),
            "<h2>How this was measured</h2><ul>",
            *(f"<li>{escape(note)}</li>" for note in found.how),
            "</ul><h2>What the words mean</h2><dl>",
            *(f"<dt><b>{escape(w)}</b></dt><dd>{escape(text)}</dd>" for w, text in _WORDS.items()),
            "</dl></body></html>",
            "",
        ]
    )


def _style() -> str:
    colours = {"chosen": plots.CHOSEN, "kept": plots.KEPT, "refused": plots.REFUSED}
    variables = " ".join(f"--{name}: {colour};" for name, colour in colours.items())
    sheet = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    return f":root {{ {variables} }}\n{sheet}"


def _lead(found: Found) -> str:
    served = sum(choice.chosen is not None for choice in found.choices)
    return (
        f"{len(found.candidates)} variants of the model were made and run;"
        f" {served} of {len(found.choices)} boards got one. Budgets:"
        f" {'; '.join(budget_words(found.plan.general))}."
    )


def _board(found: Found, choice: Choice) -> str:
    own = found.plan.boards.get(choice.board)
    budgets = (
        f'<p class="why">Own budgets: {escape("; ".join(budget_words(own)))}.</p>' if own else ""
    )
    notes = "".join(f'<p class="why note">{escape(note)}</p>' for note in choice.notes)
    why = f'<p class="why">{escape(choice.reason)}</p>{budgets}{notes}'
    if choice.chosen is None:
        return (
            f'<div class="board none"><h3>{escape(choice.title)}</h3>'
            f'<div class="name">no variant</div>{why}</div>'
        )
    chosen = found.candidate(choice.chosen)
    facts = [
        ("size", f"{chosen.size_bytes:,} bytes{_share(found, chosen)}"),
        ("sent", f"{chosen.transfer_bytes:,} bytes"),
        (f"drop of {found.metric}", loss_words(chosen)),
        ("one row", f"{chosen.latency_us.p50:,.1f} µs here{_ratio(chosen)}"),
    ]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return (
        f'<div class="board"><h3>{escape(choice.title)}</h3>'
        f'<div class="name">{escape(chosen.name)}</div><dl>{listed}</dl>{why}</div>'
    )


def _share(found: Found, chosen: Candidate) -> str:
    base = found.float32
    if base is None or base.size_bytes <= chosen.size_bytes:
        return ""
    return f", {base.size_bytes / chosen.size_bytes:.1f} times smaller than float32"


def _ratio(candidate: Candidate) -> str:
    return "".join(
        f", {ratio.point:.2f} × {name} ({ratio.low:.2f} to {ratio.high:.2f})"
        for name, ratio in candidate.against.items()
    )


def _legend() -> str:
    marks = (
        (plots.CHOSEN, "chosen for a board"),
        (plots.KEPT, "on the front: no other beats it in everything"),
        (plots.LOST, "beaten by another in everything"),
        (plots.REFUSED, "refused by verification (in the table only)"),
    )
    dots = "".join(f"<span>{_dot(colour)}{escape(text)}</span>" for colour, text in marks)
    return f'<p class="legend">{dots}<span>● ONNX &nbsp; ■ TFLite</span></p>'


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}"></i>'


def _table(found: Found) -> str:
    heads = (
        "size",
        "sent",
        f"drop of {found.metric}",
        "p50",
        "p90",
        "p99 µs",
        "× float32",
        "memory",
    )
    cells = "".join(f'<th class="n">{escape(head)}</th>' for head in heads)
    order = sorted(found.candidates, key=lambda c: (bool(c.faults), c.size_bytes, c.name))
    rows = "".join(_line(found, candidate) for candidate in order)
    return (
        f'<div class="scroll"><table><thead><tr><th>variant</th>{cells}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _line(found: Found, candidate: Candidate) -> str:
    latency = candidate.latency_us
    ratios = " / ".join(f"{ratio.point:.2f}" for ratio in candidate.against.values())
    figures = (
        f"{candidate.size_bytes:,}",
        f"{candidate.transfer_bytes:,}",
        loss_words(candidate),
        f"{latency.p50:,.1f}",
        f"{latency.p90:,.1f}",
        f"{latency.p99:,.1f}",
        ratios or "–",
        f"{candidate.memory_peak_bytes / 1024:,.0f} KiB",
    )
    cells = "".join(f'<td class="n">{escape(figure)}</td>' for figure in figures)
    chosen = found.chosen_by(candidate)
    state = "chosen" if chosen else "refused" if candidate.faults else ""
    recipe = f"<details><summary>recipe</summary><pre>{escape(candidate.recipe)}</pre></details>"
    return (
        f'<tr class="{state}"><td class="name">{_dot(plots.colour(found, candidate))}'
        f"{escape(candidate.name)}</td>{cells}</tr>"
        f'<tr class="{state} reasons"><td colspan="{len(figures) + 1}">'
        f"{_reasons(found, candidate, chosen)}{recipe}</td></tr>"
    )


def _reasons(found: Found, candidate: Candidate, chosen: list[str]) -> str:
    parts = [f"<div><b>chosen for {escape(', '.join(chosen))}</b></div>"] if chosen else []
    for boards, reasons in found.why_lost(candidate):
        where = "" if len(boards) == len(found.choices) else f"{', '.join(boards)}: "
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        parts.append(f"<div>{escape(where)}<ul>{items}</ul></div>")
    return "".join(parts)


def _sensitivities(found: Found) -> Iterable[str]:
    """Yield a chart for each measurement; variants that share one stand above it together."""
    measured: list[tuple[list[dict[str, Any]], list[str]]] = []
    for candidate in found.candidates:
        layers = candidate.notes.get("sensitivity")
        names = next((known for other, known in measured if other == layers), None)
        if names is not None:
            names.append(candidate.name)
        elif layers:
            measured.append((layers, [candidate.name]))
    for layers, names in measured:
        worst = sorted(layers, key=lambda layer: -layer["loss"])[:_MAX_BARS]
        most = max(layer["loss"] for layer in worst) or 1.0
        yield f"<h2>Which layers of {escape(', '.join(names))} are sensitive</h2>"
        yield (
            "<p>What is lost when one layer alone is quantized; the most sensitive layers are kept"
            ' in float32.</p><div class="bars">'
        )
        for layer in worst:
            width = max(0.0, 100 * layer["loss"] / most)
            name, kind = escape(str(layer["layer"])), escape(str(layer["op"]))
            yield (
                f"<span>{name} <small>{kind}</small></span>"
                f'<div class="bar" style="width:{width:.1f}%"></div>'
                f"<span>{layer['loss']:.2e} ({layer['bytes']:,} bytes)</span>"
            )
        yield "</div>"


def _unmade(found: Found) -> Iterable[str]:
    if not found.unmade:
        return
    yield "<h2>What could not be made</h2>"
    yield f"<details><summary>{len(found.unmade)} recipes</summary><ul>"
    for made in found.unmade:
        yield f"<li><b>{escape(made.name)}</b>: {escape(made.reason)}</li>"
    yield "</ul></details>"
