"""The manifest of a bundle: everything that a device needs to know of one variant, version 1.

A bundle is a set of content-addressed files. The manifest lists them, and is itself the TUF
target: its own length and digest are in the signed metadata, so whoever trusts the manifest
trusts every file by digest. It is UTF-8 JSON of at most 4 MiB.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_protocol import blocks, codec
from edgefleet_protocol.errors import MalformedError, TooLargeError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Count, Digest, Name

VERSION = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Label = Annotated[str, Meta(max_length=200)]
Runtime = Literal["onnxruntime", "litert"]
Task = Literal["classification", "regression", "score"]
DType = Literal[
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "string",
]
# What is counted of an input that is not made of named features, per row.
SUMMARIES = ("mean", "std", "min", "max")


class Transfer(Struct, frozen=True):
    """How a file travels: the blob that is cut into blocks.

    Attributes:
        encoding: `zstd` when that made it smaller, else `identity`.
        digest: of the blob as sent.
        size_bytes: of the blob as sent.
        blocks: digest of each 128 KiB block, so that one bad block is dropped, not the download.
    """

    encoding: Literal["identity", "zstd"]
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=blocks.MAX_ARTIFACT_BYTES)]
    blocks: Annotated[list[Digest], Meta(max_length=blocks.MAX_BLOCKS)]


class File(Struct, frozen=True):
    """One file of a bundle.

    Attributes:
        role: `model`, `reference` (sketch edges and training profile), `golden` (golden vectors)
            or `card` (model card, for people).
        digest: of the file as used.
    """

    role: Literal["model", "reference", "golden", "card"]
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=blocks.MAX_ARTIFACT_BYTES)]
    transfer: Transfer


class Tensor(Struct, frozen=True, omit_defaults=True):
    """An input or output of the model.

    Attributes:
        shape: None, as the first size, stands for the batch; the other sizes of an input are
            fixed.
        columns: names of the features that fill this input, in order, row-major. Empty for an
            output, and for an input that is no row of features (a picture, a spectrogram, a state):
            of that, its `SUMMARIES` are counted.
        counted_as: under what name they are, so that variants whose files name an input
            differently share one reference profile; empty for `name`.
    """

    name: Label
    dtype: DType
    shape: Annotated[list[int | None], Meta(max_length=8)]
    columns: Annotated[list[Label], Meta(max_length=4096)] = field(default_factory=list)
    counted_as: Label = ""


class Signature(Struct, frozen=True, omit_defaults=True):
    """What goes in and what comes out. All preprocessing is inside the model's graph.

    Attributes:
        classes: labels in the order of the output's probabilities (classification).
        label_output: name of the output that holds the predicted label, where the model has one.
        score_output: name of the output that holds class probabilities (classification) or the
            value (regression, score).
    """

    task: Task
    inputs: Annotated[list[Tensor], Meta(min_length=1, max_length=1024)]
    outputs: Annotated[list[Tensor], Meta(min_length=1, max_length=64)]
    score_output: Label
    label_output: Label | None = None
    classes: Annotated[list[Label], Meta(max_length=1024)] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of all features, in the order in which a row gives them."""
        return [column for tensor in self.inputs for column in tensor.columns]

    @property
    def is_tabular(self) -> bool:
        """Whether every input is made of named features, so that a row of numbers is enough."""
        return all(tensor.columns for tensor in self.inputs)

    @property
    def takes_batches(self) -> bool:
        """Whether a call takes any number of rows. Without a batch size a call is one row."""
        return all(tensor.shape and tensor.shape[0] is None for tensor in self.inputs)

    @property
    def features(self) -> list[str]:
        """Names of everything that is counted of a row: columns, and summaries of other inputs."""
        return [
            name
            for tensor in self.inputs
            for name in tensor.columns
            or [f"{tensor.counted_as or tensor.name}.{word}" for word in SUMMARIES]
        ]


class Needs(Struct, frozen=True, omit_defaults=True):
    """What a device must offer.

    Attributes:
        runtime: by its family name; `runtime_min` is the lowest version that loads the file.
        alternatives: other runtimes that run the file, by the names under which devices report
            them → lowest version of each. `tflite-runtime` is one to `litert`: its versions count
            on their own (2.14 is older than LiteRT 1.0).
        memory_bytes: resident memory the model adds, measured at conversion.
        boards: empty for any.
        max_latency_us: budget of one row, by the median of a trial on the device; 0 for none.
        max_memory_bytes: budget of resident memory added on the device; 0 for none.
    """

    runtime: Runtime
    runtime_min: Name
    memory_bytes: Count = 0
    boards: Annotated[list[Name], Meta(max_length=64)] = field(default_factory=list)
    max_latency_us: Count = 0
    max_memory_bytes: Count = 0
    alternatives: Annotated[dict[Name, Name], Meta(max_length=8)] = field(default_factory=dict)


class Measured(Struct, frozen=True, omit_defaults=True):
    """Figures of this variant, measured at conversion on the converting machine.

    Attributes:
        score: accuracy (classification) or R² (regression) on held-out rows, None without labels.
        score_rows: rows behind `score`.
        parity_max: largest absolute difference of the score output from the original model.
        agreement: share of rows with the same predicted class, or within tolerance.
        latency_us: median time of one row at one thread.
    """

    parity_max: float
    agreement: float
    latency_us: float
    score: float | None = None
    score_rows: Count = 0


class Lineage(Struct, frozen=True, omit_defaults=True):
    """Where the model came from."""

    dataset: Annotated[str, Meta(max_length=64)] = ""
    run: Name = ""
    trainer: Label = ""
    code: Label = ""
    parameters: dict[str, int | float | str | bool | None] = field(default_factory=dict)


class Manifest(Struct, frozen=True, omit_defaults=True):
    """One variant of one version of a model.

    Attributes:
        variant: `onnx-fp32`, `onnx-int8`, `tflite-int8`, …; unique within the version.
        format: `onnx` or `tflite`, with its technique.
    """

    model: Name
    model_version: Name
    variant: Name
    files: Annotated[list[File], Meta(min_length=1, max_length=16)]
    signature: Signature
    needs: Needs
    measured: Measured
    lineage: Lineage
    version: int = VERSION

    def file(self, role: str) -> File:
        """Return the file with `role`.

        Raises:
            MalformedError: if the bundle has none.
        """
        for file in self.files:
            if file.role == role:
                return file
        raise MalformedError(f"bundle {self.model} {self.model_version} has no {role!r} file")

    @property
    def transfer_bytes(self) -> int:
        """Bytes that travel for the whole bundle, the manifest excepted."""
        return sum(file.transfer.size_bytes for file in self.files)


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON with sorted keys: equal manifests give equal bytes."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(data: bytes) -> Manifest:
    """Read a manifest and check that it is whole.

    Raises:
        TooLargeError: over 4 MiB.
        MalformedError: not a manifest of version 1, a role twice, no model or golden vectors, or
            block lists that do not fit the sizes.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise TooLargeError("manifest", len(data), MAX_MANIFEST_BYTES)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"not a bundle manifest: {error}") from error
    if manifest.version != VERSION:
        raise MalformedError(f"manifest version {manifest.version}: this release reads {VERSION}")
    roles = [file.role for file in manifest.files]
    if len(set(roles)) != len(roles):
        raise MalformedError(f"manifest lists a role twice: {sorted(roles)}")
    for role in ("model", "reference", "golden"):
        manifest.file(role)
    for file in manifest.files:
        expected = blocks.block_count(file.transfer.size_bytes)
        if len(file.transfer.blocks) != expected:
            raise MalformedError(
                f"manifest lists {len(file.transfer.blocks)} blocks for the {file.role} file of"
                f" {file.transfer.size_bytes} bytes; expected {expected}"
            )
    return manifest


def describe_file(
    role: Literal["model", "reference", "golden", "card"], data: bytes
) -> tuple[File, bytes]:
    """Return the manifest entry of `data` and the blob that travels for it."""
    packed = codec.compress(data)
    encoding: Literal["identity", "zstd"] = "zstd" if len(packed) < len(data) else "identity"
    blob = packed if encoding == "zstd" else data
    transfer = Transfer(encoding, digest_of(blob), len(blob), blocks.block_digests(blob))
    return File(role, digest_of(data), len(data), transfer), blob


def unpack_file(file: File, blob: bytes) -> bytes:
    """Return the file held in a received `blob`, every size and digest checked.

    Raises:
        MalformedError: if anything differs from the manifest.
    """
    if len(blob) != file.transfer.size_bytes or digest_of(blob) != file.transfer.digest:
        raise MalformedError(f"{file.role} blob differs from its digest {file.transfer.digest}")
    data = blob
    if file.transfer.encoding == "zstd":
        data = codec.decompress(blob, limit=file.size_bytes, what=f"{file.role} file")
    if len(data) != file.size_bytes or digest_of(data) != file.digest:
        raise MalformedError(f"{file.role} file differs from its digest {file.digest}")
    return data
