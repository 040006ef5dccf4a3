"""JUnit XML of a result document, as GitHub, GitLab, Jenkins and the like read it.

One suite a target, one test case a model. A model that is not right is a failure; a target that
could not be tried is an error; where the static check refused a model that then ran right, the test
passes and its output says so. Of the many dialects this keeps to what all of them know:
`testsuites/testsuite/testcase` with `failure` and `error`.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from xml.etree import ElementTree as ET

from edgefleet_hardware import loads
from edgefleet_hardware.results import Cell, Document

# XML 1.0 has no way to write these; runtimes print them.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def encode(document: Document) -> bytes:
    """Return the document as JUnit XML, UTF-8."""
    root = ET.Element("testsuites", {"name": "edgefleet-compat", **_counts(document.cells)})
    for target, cells in groupby(document.cells, key=lambda cell: cell.target):
        listed = list(cells)
        suite = ET.SubElement(root, "testsuite", {"name": str(target), **_counts(listed)})
        for cell in listed:
            suite.append(_case(cell))
    ET.indent(root)
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _counts(cells: Iterable[Cell]) -> dict[str, str]:
    listed = list(cells)
    failed = sum(cell.outcome is not None and not cell.outcome.is_right for cell in listed)
    untried = sum(cell.outcome is None for cell in listed)
    return {
        "tests": str(len(listed)),
        "failures": str(failed),
        "errors": str(untried),
        "skipped": "0",
        "time": f"{sum(_seconds(cell) for cell in listed):.6f}",
    }


def _case(cell: Cell) -> ET.Element:
    case = ET.Element(
        "testcase",
        name=_text(cell.case),
        classname=_text(str(cell.target)),
        time=f"{_seconds(cell):.6f}",
    )
    outcome = cell.outcome
    if outcome is None:
        error = ET.SubElement(case, "error", type="not-tried", message=_text(cell.untried))
        error.text = _text(cell.untried)
    elif not outcome.is_right:
        message = _text(f"{outcome.kind}: {outcome.detail}")
        failure = ET.SubElement(case, "failure", type=outcome.kind, message=message)
        failure.text = message
    said = [outcome.detail] if outcome is not None and outcome.is_right else []
    interval = None if outcome is None else loads.clock_us(outcome.loads)
    if outcome is not None and interval is not None:
        said.append(
            f"median of {len(outcome.loads)} loads {interval.point:,.1f} µs,"
            f" {interval.low:,.1f} to {interval.high:,.1f} at 95 % confidence"
        )
    if cell.told is not None and not cell.told.fits:
        said += [f"static check: {reason}" for reason in cell.told.reasons]
    if said:
        ET.SubElement(case, "system-out").text = _text("\n".join(said))
    return case


def _seconds(cell: Cell) -> float:
    """Return the median of one call; JUnit's readers plot it."""
    latency = None if cell.outcome is None else cell.outcome.latency_us
    return 0.0 if latency is None else latency.p50 / 1e6


def _text(value: str) -> str:
    return _FORBIDDEN.sub("�", value)
