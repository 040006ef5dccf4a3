"""Which layers and topologies of Keras convert to ONNX and TFLite, and answer as before.

Each small model is saved, opened by our route, converted by our steps and run on its runtime, with
several rows and with one. Rules:

1. Right means that no score is further from Keras's own than `TOLERANCE`, scores above 1 in
   proportion.
2. All cases run in one child process, since importing TensorFlow takes longer than any of them. A
   case that kills it is noted, and the others go on in a new one.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from edgefleet_converters import child, keras_files, runners, sources
from edgefleet_converters.errors import ChildError, ConversionError
from edgefleet_converters.routes import keras as keras_route
from edgefleet_converters.routes import savedmodel as savedmodel_route
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import conversions
from edgefleet_converters.steps.registry import Context, Model, NoOptions
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.rows import Tensors
from tests.coverage import keras_cases
from tests.coverage.keras_cases import Case

TOLERANCE = 1e-4
# 7 rows are no size that a layer could take for its own.
_ROWS = 7
_STEPS = {
    ("keras", "onnx"): conversions.keras_to_onnx,
    ("keras", "tflite"): conversions.keras_to_tflite,
    ("savedmodel", "onnx"): conversions.savedmodel_to_onnx,
    ("savedmodel", "tflite"): conversions.savedmodel_to_tflite,
}
_RUNTIMES: dict[str, Runtime] = {"onnx": "onnxruntime", "tflite": "litert"}


class Result(Struct, frozen=True):
    """What became of one case in one format.

    Attributes:
        state: `right`, `wrong`, `refused` or `crashed`.
        gap: largest difference; None where nothing was run.
        detail: why, if it is not right.
    """

    name: str
    kind: str
    format: str
    state: str
    gap: float | None = None
    detail: str = ""


def run(cases: Sequence[Case] = keras_cases.CASES) -> list[Result]:
    """Try cases, and return a result for each and each format."""
    names = [case.name for case in cases]
    crashes: list[Result] = []
    while True:
        current = ""

        def follow(fraction: float, text: str) -> None:
            nonlocal current
            del fraction
            current = text

        try:
            found = child.run(
                "coverage of Keras", _try_all, names, returns=list[Result], progress=follow
            )
        except ChildError as error:
            if current not in names:
                raise
            names.remove(current)
            (case,) = (case for case in cases if case.name == current)
            reason = str(error).splitlines()[0]
            crashes += [
                Result(case.name, case.kind, made, "crashed", None, reason) for made in _RUNTIMES
            ]
        else:
            return found + crashes


def share(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    """Return, for each format, how many cases are right and how many there are."""
    counted = {}
    for made in _RUNTIMES:
        states = [result.state for result in results if result.format == made]
        counted[made] = (states.count("right"), len(states))
    return counted


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, and the reasons of what is not right below it."""
    lines = ["| layer or topology | kind | ONNX | TFLite |", "|---|---|---|---|"]
    by_name: dict[str, dict[str, Result]] = {}
    for result in results:
        by_name.setdefault(result.name, {})[result.format] = result
    reasons = []
    for name, found in by_name.items():
        cells = [_cell(found[made]) for made in _RUNTIMES]
        lines.append(f"| {name} | {found['onnx'].kind} | {' | '.join(cells)} |")
        reasons += [f"- {name}, {r.format}: {r.detail}" for r in found.values() if r.detail]
    parts = [
        f"{right} of {total} right in {made}" for made, (right, total) in share(results).items()
    ]
    return "\n".join([*lines, "", f"{'; '.join(parts)}.", "", *reasons]).rstrip() + "\n"


def _cell(result: Result) -> str:
    return f"{result.gap:.0e}" if result.state == "right" else f"**{result.state}**"


def _try_all(names: list[str]) -> list[Result]:
    """Try cases in this process, which may not survive it."""
    results = []
    for position, name in enumerate(names):
        child.report(position / len(names), name)
        (case,) = (case for case in keras_cases.CASES if case.name == name)
        results += _try(case)
    return results


def _try(case: Case) -> list[Result]:
    try:
        samples, opened = _open(case)
    except ConversionError as error:
        return [Result(case.name, case.kind, m, "refused", None, str(error)) for m in _RUNTIMES]
    (base,) = opened.bases.values()
    context = Context(opened.task, samples, opened.scores, None, 0)
    results = []
    for made, runtime in _RUNTIMES.items():
        try:
            model = _STEPS[base.format, made](base, NoOptions(), context)
            gap = _gap(runtime, model, samples, opened)
        except ConversionError as error:
            results.append(Result(case.name, case.kind, made, "refused", None, str(error)))
        except Exception as error:  # the runtimes' own exceptions, which have no common base
            text = f"{runtime}: {' '.join(str(error).split())[:300]}"
            results.append(Result(case.name, case.kind, made, "wrong", None, text))
        else:
            right = gap <= TOLERANCE
            detail = "" if right else f"scores differ by up to {gap:.1e}"
            state = "right" if right else "wrong"
            results.append(Result(case.name, case.kind, made, state, gap, detail))
    return results


def _open(case: Case) -> tuple[Samples, Opened]:
    """Build a model, save it, and open the file by its route."""
    keras = keras_files.import_keras(1)
    keras.backend.clear_session()
    model = case.build(keras, keras.layers)
    samples = Samples(case.name, None, _tensors(case))
    with tempfile.TemporaryDirectory() as folder:
        if case.exported:
            model.export(folder, verbose=False)
            return samples, savedmodel_route.open(sources.recognise(folder), samples, Hints())
        path = Path(folder, "model.keras")
        model.save(path)
        return samples, keras_route.open(sources.recognise(path), samples, Hints())


def _tensors(case: Case) -> Tensors:
    random = np.random.default_rng(2)
    tensors: Tensors = {}
    for place, shape in enumerate(case.inputs):
        values: Any = random.normal(0, 2, (_ROWS, *shape)).astype(np.float32)
        if case.words:
            values = random.integers(0, case.words, (_ROWS, *shape)).astype(np.int32)
        tensors[f"input {place}"] = values
    return tensors


def _gap(runtime: Runtime, model: Model, samples: Samples, opened: Opened) -> float:
    runner = runners.load(runtime, model.data, model.signature)
    tensors = samples.bind(model.signature)
    first = {name: values[:1] for name, values in tensors.items()}
    got = np.concatenate([runner.run(tensors), runner.run(first)])
    wanted = np.concatenate([opened.scores, opened.scores[:1]])
    return float((np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))).max())
