"""Pages from templates, and what a browser may do with them.

Rules:

1. Every value is escaped by the template engine; no template marks anything as safe.
2. No script runs: the content security policy permits the page's own style sheet and forms to the
   hub itself, nothing else.
3. An unknown name in a template is an error, never an empty cell.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from edgefleet_cloud.api.authentication import Shown

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src data:; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    # With `no-referrer`, browsers send forms with `Origin: null`, which says nothing.
    "Referrer-Policy": "same-origin",
}


def style() -> str:
    """Return the style sheet."""
    return (files("edgefleet_cloud.web") / "style.css").read_text(encoding="utf-8")


def page(
    template: str, shown: Shown, values: Mapping[str, Any] | None = None, status: int = 200
) -> HTMLResponse:
    """Return a page.

    Args:
        template: its name, without `.html`.
        shown: who looks at it.
        values: for the template.
        status: of the answer.
    """
    text = _environment.get_template(f"{template}.html").render(
        caller=shown.caller, csrf=shown.csrf, **(values or {})
    )
    return HTMLResponse(text, status, HEADERS)


def when(at: float | None) -> str:
    """Return a time as people read it."""
    if at is None:
        return "–"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def written(value: object) -> str:
    """Return any value as text: numbers in few digits, structures as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, indent=1)


_environment = Environment(
    loader=PackageLoader("edgefleet_cloud.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(when=when, written=written)
