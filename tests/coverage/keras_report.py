"""The table of Keras's layers and topologies for the terminal and for the page."""

from collections.abc import Sequence

from rich.table import Table

from tests.coverage import keras, keras_cases
from tests.coverage.keras import Result
from tests.coverage.report import Report


def run(names: Sequence[str] = ()) -> Report:
    """Check all layers and topologies, or those named."""
    cases = [case for case in keras_cases.CASES if not names or case.name in names]
    results = keras.run(cases)
    right = all(result.state == "right" for result in results)
    parts = [
        f"{count} of {total} right in {made}"
        for made, (count, total) in keras.share(results).items()
    ]
    return Report(_table(results), "; ".join(parts), keras.table(results), right)


def _table(results: list[Result]) -> Table:
    table = Table(title="Keras → ONNX and TFLite", title_justify="left")
    for column in ("kind", "layer or topology", "format", "state", "largest difference", "why"):
        table.add_column(column)
    for result in results:
        gap = "" if result.gap is None else f"{result.gap:.0e}"
        table.add_row(
            result.kind, result.name, result.format, result.state, gap, result.detail[:200]
        )
    return table
