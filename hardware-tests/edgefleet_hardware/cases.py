"""Cases: one model file each, with what goes in and what has to come out. Values only.

A case knows nothing of where it is run. Arrays have the calls first: `inputs["x"][i]` is what call
`i` gets, so a model of a fixed batch and one of any batch are written down in the same way.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.runtimes import Format
from edgefleet_protocol import golden, manifest
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.identifiers import digest_of

# As `edgefleet-convert convert --out` names it.
MANIFEST_NAME = "manifest.json"
Arrays = dict[str, NDArray[np.generic]]
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".ort": "onnx", ".tflite": "tflite"}
MAX_MODEL_BYTES = 2 << 30


class Limits(Struct, frozen=True):
    """What one case may take on a target.

    Attributes:
        time_s: from the start of its process to its answer.
        memory_bytes: resident memory of its process, the runtime's own included.
    """

    time_s: float = 60.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class Expected:
    """What a right runtime answers.

    Attributes:
        outputs: output name → `(calls, …)`.
        atol: output name → largest allowed absolute difference.
        min_agreement: least share of rows whose largest output is the expected one.
        rows: in all calls together: how the outputs are cut into rows.
        labels: right class of each row, `(rows,)`, or None; judged on the first output.
        min_accuracy: least share of rows whose largest output is the label.
    """

    outputs: Arrays
    atol: dict[str, float]
    rows: int
    min_agreement: float = 0.0
    labels: NDArray[np.int64] | None = None
    min_accuracy: float = 0.0


@dataclass(frozen=True)
class Case:
    """One model to be run.

    Attributes:
        name: unique within a run, and the same from release to release: `MODEL/VARIANT` of a
            bundle, the path of a file as it was given.
        data: the model file as found; a copy goes to the target.
        digest: SHA-256 that the file must have, "" where nobody told one.
        inputs: input name → `(calls, …)`; empty: made on the target from `seed`.
        expected: None where nothing is known; then any finite answer is right.
        meant: whether the arrays are numbers with any count of rows, as in a bundle's golden
            vectors; where a model takes and gives quantized integers, or a fixed count of rows,
            the runner then converts and cuts, as a device does.
        bundle: folder of the bundle that it is, for devices, which take nothing else.
    """

    name: str
    format: Format
    data: bytes
    digest: str = ""
    inputs: Arrays = field(default_factory=dict)
    seed: int = 0
    expected: Expected | None = None
    limits: Limits = Limits()  # noqa: RUF009  # it is frozen
    meant: bool = False
    bundle: Path | None = None

    def expecting(self, expected: Expected | None) -> "Case":
        """Return this case with another expectation."""
        return dataclasses.replace(self, expected=expected)

    def head(self, calls: int) -> "Case":
        """Return this case with its first calls only, and without labels: they need all rows."""
        if len(next(iter(self.inputs.values()), ())) <= calls:
            return self
        expected = self.expected
        if expected is not None:
            rows = expected.rows * calls // len(next(iter(expected.outputs.values())))
            outputs = {name: values[:calls] for name, values in expected.outputs.items()}
            expected = dataclasses.replace(expected, outputs=outputs, rows=rows, labels=None)
        inputs = {name: values[:calls] for name, values in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, expected=expected)


def read(path: Path, limits: Limits | None = None) -> Case:
    """Read a bundle's folder, or a model file.

    Raises:
        BadUseError: neither, or it cannot be read.
    """
    limits = limits or Limits()
    if (path / MANIFEST_NAME).is_file():
        return _of_bundle(path, limits)
    format_ = _SUFFIXES.get(path.suffix.lower())
    if format_ is None:
        raise BadUseError(
            f"{path}: expected a bundle's folder (with {MANIFEST_NAME}) or a file ending"
            f" in {', '.join(_SUFFIXES)}"
        )
    return Case(str(path), format_, read_bytes(path), limits=limits)


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        BadUseError: it cannot be read, or is too large for a model.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise BadUseError(f"{path}: {size} bytes; at most {MAX_MODEL_BYTES} are tried")
        return path.read_bytes()
    except OSError as error:
        raise BadUseError(f"{path}: cannot be read: {error.strerror or error}") from error


def _of_bundle(folder: Path, limits: Limits) -> Case:
    """Return the case of a bundle; a blob that differs from the manifest is left to be refused.

    The manifest and the golden vectors must be whole: without them nothing is known of the model.
    The model itself is taken as it lies there, with the digest that it should have, because whether
    a target would run a damaged one is a thing to be seen, not one to be assumed.
    """
    try:
        read_manifest = manifest.decode(read_bytes(folder / MANIFEST_NAME))
        vectors = golden.decode(_unpacked(folder, read_manifest, "golden"))
        signature = read_manifest.signature
        inputs = golden.inputs_of(signature, vectors)
    except ProtocolError as error:
        raise BadUseError(f"{folder}: no whole bundle: {error}") from error
    entry = read_manifest.file("model")
    try:
        data = _unpacked(folder, read_manifest, "model")
    except ProtocolError:
        data = read_bytes(folder / entry.transfer.digest)
    expected = vectors.expected().reshape(1, vectors.rows, vectors.width)
    is_onnx = read_manifest.needs.runtime == "onnxruntime"
    return Case(
        f"{read_manifest.model}/{read_manifest.variant}",
        "onnx" if is_onnx else "tflite",
        data,
        entry.digest,
        {name: values[np.newaxis] for name, values in inputs.items()},
        expected=Expected(
            {signature.score_output: expected},
            {signature.score_output: vectors.atol},
            vectors.rows,
            vectors.min_agreement if vectors.width > 1 else 0.0,
        ),
        limits=limits,
        meant=True,
        bundle=folder,
    )


def _unpacked(folder: Path, read_manifest: manifest.Manifest, role: str) -> bytes:
    file = read_manifest.file(role)
    return manifest.unpack_file(file, read_bytes(folder / file.transfer.digest))


def model_digest(case: Case) -> str:
    """Return the SHA-256 of the model file as it is."""
    return digest_of(case.data)
