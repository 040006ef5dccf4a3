"""Options of budgets and trials, for both command lines that search."""

from pathlib import Path
from typing import Annotated

import typer

BudgetFile = Annotated[
    Path | None, typer.Option(help="YAML of budgets, for all boards and for single ones.")
]
MaxDrop = Annotated[
    float | None, typer.Option(help="Of the metric, absolute: 0.005 is half a point.")
]
MaxBytes = Annotated[int | None, typer.Option(help="Of the model file.")]
MaxTransferBytes = Annotated[int | None, typer.Option(help="Of the file as sent.")]
MaxLatencyUs = Annotated[int | None, typer.Option(help="Of one row, on the board.")]
MaxMemoryMib = Annotated[int | None, typer.Option(help="That the model may add.")]
EvidenceKind = Annotated[
    str | None, typer.Option(help="What a drop within its budget takes: proven, not-refuted.")
]
Confidence = Annotated[float | None, typer.Option(help="Of intervals, 0.95 by default.")]
Preference = Annotated[
    str | None, typer.Option(help="Of what keeps all budgets: size (default) or latency.")
]
Trials = Annotated[int, typer.Option(min=0, help="Most points of the spaces that are tried.")]


def given(
    *,
    max_drop: float | None,
    max_bytes: int | None,
    max_transfer_bytes: int | None,
    max_latency_us: int | None,
    max_memory_mib: int | None,
    evidence: str | None,
    confidence: float | None,
    prefer: str | None,
) -> dict[str, float | str]:
    """Return the budgets that were given on the command line, for `budgets.plan`."""
    values: dict[str, float | str | None] = {
        "max_drop": max_drop,
        "max_bytes": max_bytes,
        "max_transfer_bytes": max_transfer_bytes,
        "max_latency_us": max_latency_us,
        "max_memory_bytes": None if max_memory_mib is None else max_memory_mib * 2**20,
        "evidence": evidence,
        "confidence": confidence,
        "prefer": prefer,
    }
    return {name: value for name, value in values.items() if value is not None}
