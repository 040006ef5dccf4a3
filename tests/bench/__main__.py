"""Run all benchmarks, print them, and write `build/bench/<module>.json`."""

import importlib
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.metric import Metric

FOLDER = Path("build/bench")


def main(names: list[str]) -> None:
    """Run the benchmarks whose names are given, or all of them."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = [name for name in found if not names or name.removeprefix("bench_") in names]
    if not chosen:
        known = ", ".join(name.removeprefix("bench_") for name in found)
        sys.exit(f"no such benchmark: {' '.join(names)}; there are {known}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("metric", "value", "unit", "beside", "its value", "ratio"):
        table.add_column(column)
    for name in chosen:
        metrics: list[Metric] = importlib.import_module(f"tests.bench.{name}").run()
        (FOLDER / f"{name}.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(metrics), indent=2)
        )
        for metric in metrics:
            table.add_row(
                metric.name,
                f"{metric.value:,.2f}",
                metric.unit,
                metric.peer,
                f"{metric.peer_value:,.2f}",
                f"{metric.ratio:.2f}",
            )
    Console().print(table)


main(sys.argv[1:])
