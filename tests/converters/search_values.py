"""Made-up candidates, evidence and boards for the tests of the search."""

from typing import Any

from edgefleet_converters.searching.budgets import BudgetPlan
from edgefleet_converters.searching.candidates import Candidate, Distribution, Unmade
from edgefleet_converters.searching.choice import BoardView, choose
from edgefleet_converters.searching.found import Found, Machine
from edgefleet_converters.verification.evidence import Evidence, Interval


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]


def around(point: float, width: float = 0.0) -> Interval:
    return Interval(point, point - width, point + width)


def evidence(drop: Interval, units: int = 400) -> Evidence:
    score = Interval(0.9 - drop.point, 0.85, 0.95)
    return Evidence(
        "accuracy", True, units, around(0.9, 0.03), score, drop, 0.95, 0.01, 0.001, 0.99
    )


def candidate(name: str, size_bytes: int = 1000, p50: float = 10.0, **others: Any) -> Candidate:
    values: dict[str, Any] = {
        "recipe": f"name: {name}\n",
        "runtime": "onnxruntime",
        "lossless": False,
        "trial": None,
        "digest": digest(name),
        "transfer_bytes": size_bytes - 1,
        "memory_bytes": 5000,
        "memory_peak_bytes": 6000,
        "against": {"fp32": around(0.5, 0.01)},
        "evidence": evidence(around(0.001, 0.001)),
    } | others
    return Candidate(
        name=name,
        size_bytes=size_bytes,
        latency_us=Distribution(p50, 2 * p50, 3 * p50),
        **values,
    )


def float32(name: str = "fp32", size_bytes: int = 4000, **others: Any) -> Candidate:
    values = {"lossless": True, "against": {}, "evidence": evidence(around(0.0))} | others
    return candidate(name, size_bytes, 20.0, **values)


def board(*names: str, here: bool = True, **others: Any) -> BoardView:
    """Return a board on which every named variant fits."""
    values: dict[str, Any] = {
        "name": "rpi5",
        "title": "Raspberry Pi 5",
        "architecture": "aarch64",
        "features": ["neon", "dotprod"],
        "misfits": {name: [] for name in names},
    } | others
    return BoardView(here=here, **values)


def found(*candidates: Candidate, plan: BudgetPlan | None = None, **others: Any) -> Found:
    """Return what a search for two boards would have found."""
    plan = plan or BudgetPlan()
    names = [one.name for one in candidates]
    first = board(*names)
    second = board(*names, name="pico", title="A small board", here=False, features=["neon"])
    values: dict[str, Any] = {
        "candidates": list(candidates),
        "unmade": [Unmade("onnx-x", "name: onnx-x\n", None, "has no <layers>")],
        "choices": [choose(view, candidates, plan.of(view.name)) for view in (first, second)],
        "notes": ["6 of 18 points were tried"],
        "seconds": {"open": 1.0},
    } | others
    return Found(
        model="kws",
        version="3",
        task="classification",
        metric="accuracy",
        rows=400,
        original_score=0.9,
        labelled=True,
        plan=plan,
        machine=Machine("A CPU", "x86_64", {"onnxruntime": "1.31.1"}),
        **values,
    )
