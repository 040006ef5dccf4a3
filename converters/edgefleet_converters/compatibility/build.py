"""Rebuild the tables from the released wheels.

    python -m edgefleet_converters.compatibility.build

For every release, in a throw-away folder:

1. install its wheel there, and a NumPy that it was built for, by pip of a virtual environment made
   for this, from whatever package index is configured;
2. run a probe on it (`probe_onnxruntime`, `probe_tflite`): standard library and the runtime only;
3. ask it with models that are made here, each of which needs just one thing.

The answers are merged: what several releases have in common is written once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgefleet_converters.compatibility import (
    kernels,
    probe_models,
    releases,
    tflite_kernels,
)
from edgefleet_converters.compatibility.releases import RuntimeName

# The last bug-fix release of every minor version that has wheels for Python 3.11.
RELEASES: dict[RuntimeName, tuple[str, ...]] = {
    "onnxruntime": (
        "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2",
        "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1",
    ),
    "ai-edge-litert": (
        "1.0.1", "1.1.2", "1.2.0", "1.3.0", "1.4.0", "2.0.3", "2.1.6", "2.2.0", "2.3.0",
    ),
    "tflite-runtime": ("2.14.0",),
}  # fmt: skip
# The first release whose wheels were built against NumPy 2; those before crash with it.
_NUMPY2_FROM = {"onnxruntime": (1, 19), "ai-edge-litert": (1, 1), "tflite-runtime": (3, 0)}
# ONNX Runtime imports nothing else for what is asked of it, and would bring 100 MB along.
_ALONE = {"onnxruntime"}
_PROBE_TIME_S, _INSTALL_TIME_S = 300, 900


def ask(
    python: Path, runtime: RuntimeName, version: str, probe: str, questions: object
) -> dict[str, Any]:
    """Install one release into a throw-away folder and put questions to it.

    Args:
        python: of a virtual environment with pip and nothing else.
        runtime: its distribution.
        version: of it.
        probe: module of this package, which runs there by its path.
        questions: go to the probe as JSON.

    Raises:
        subprocess.SubprocessError: if there is no wheel, or the runtime does not start.
    """
    numbers = releases.release(version) or ()
    numpy = "numpy>=2" if numbers[:2] >= _NUMPY2_FROM[runtime] else "numpy<2"
    install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    alone = ["--no-deps"] if runtime in _ALONE else []
    with tempfile.TemporaryDirectory(prefix="edgefleet-tables-") as folder:
        subprocess.run(
            [*install, *alone, "--target", folder, f"{runtime}=={version}", numpy],
            check=True,
            timeout=_INSTALL_TIME_S,
        )
        done = subprocess.run(
            [python, "-P", Path(__file__).with_name(f"{probe}.py")],
            input=json.dumps(questions).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # both runtimes narrate there
            env=os.environ | {"PYTHONPATH": folder},
            check=True,
            timeout=_PROBE_TIME_S,
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def onnxruntime_table(python: Path, versions: Iterable[str]) -> bytes:
    """Return the packed table of ONNX Runtime; `python` as for `ask`."""
    answers = []
    for version in versions:
        questions = probe_models.onnx_questions()
        said = ask(python, "onnxruntime", version, "probe_onnxruntime", questions)
        found = kernels.answer(said)
        answers.append(found)
        held = found.release
        _say(
            f"onnxruntime {version}: {len(found.kernels)} kernels, opset {held.opset}, IR"
            f" {held.ir}, ai.onnx.ml {held.ml}"
        )
    return kernels.encode(kernels.merge(answers))


def tflite_table(python: Path, versions: dict[RuntimeName, tuple[str, ...]]) -> bytes:
    """Return the packed table of the TFLite runtimes; `python` as for `ask`."""
    questions = probe_models.tflite_questions()
    return tflite_kernels.encode(list(_tflite_releases(python, versions, questions)))


def _tflite_releases(
    python: Path, versions: dict[RuntimeName, tuple[str, ...]], questions: object
) -> Iterator[tflite_kernels.TfliteRelease]:
    for runtime, held in versions.items():
        for version in held:
            found = tflite_kernels.release(
                runtime, version, ask(python, runtime, version, "probe_tflite", questions)
            )
            total = sum(len(numbers) for numbers in found.versions.values())
            _say(
                f"{runtime} {version}: {len(found.versions)} operators in {total} versions;"
                f" custom: {', '.join(found.custom)}"
            )
            yield found


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Ask all releases and write the tables."""
    parser = argparse.ArgumentParser(description="Rebuild the tables of runtimes from their wheels")
    parser.add_argument("--out", type=Path, default=kernels.SHIPPED.parent, help="folder to write")
    parser.add_argument("--only", choices=["onnxruntime", "tflite"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)  # not after ten minutes of asking
    made = {}
    with tempfile.TemporaryDirectory(prefix="edgefleet-tables-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        if given.only != "tflite":
            made[kernels.SHIPPED.name] = onnxruntime_table(python, RELEASES["onnxruntime"])
        if given.only != "onnxruntime":
            others: dict[RuntimeName, tuple[str, ...]] = {
                name: held for name, held in RELEASES.items() if name != "onnxruntime"
            }
            made[tflite_kernels.SHIPPED.name] = tflite_table(python, others)
    for name, data in made.items():
        (given.out / name).write_bytes(data)
        _say(f"{given.out / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
