"""The table of real model files for the terminal and for the page."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tests.coverage import model_files
from tests.coverage.report import Report

_SHARED = Path(__file__).parents[2].parent / "shared"


def run(names: Sequence[str] = ()) -> Report:
    """Check all files of `EDGEFLEET_DATA`/models that are listed, or those named."""
    results = model_files.run(Path(os.environ.get("EDGEFLEET_DATA", _SHARED), "models"), names)
    right = sum(result.is_right and result.is_same for result in results)
    table = Table(title="real files → ONNX and TFLite", title_justify="left")
    for column in ("file", "to", "largest difference", "equal bytes", "bytes"):
        table.add_column(column)
    for result in results:
        table.add_row(
            result.path,
            result.format,
            f"{result.gap:.0e}",
            "yes" if result.is_same else "no",
            f"{result.size_bytes:,}",
        )
    sentence = f"{right} of {len(results)} right, with equal bytes when converted again"
    return Report(table, sentence, model_files.table(results), right == len(results))
