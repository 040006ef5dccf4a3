"""Manifests: whole or refused."""

import msgspec
import pytest

from edgefleet_protocol import manifest as m
from edgefleet_protocol.errors import MalformedError, TooLargeError


def bundle(model: bytes = b"model" * 100_000) -> tuple[m.Manifest, dict[str, bytes]]:
    blobs = {}
    files = []
    for role, data in (("model", model), ("reference", b"reference"), ("golden", b"golden")):
        file, blob = m.describe_file(role, data)  # type: ignore[arg-type]  # literals in a loop
        files.append(file)
        blobs[file.role] = blob
    signature = m.Signature(
        "classification",
        [m.Tensor("X", "float32", [None, 2], ["a", "b"])],
        [m.Tensor("p", "float32", [None, 2])],
        "p",
        classes=["no", "yes"],
    )
    made = m.Manifest(
        "digits",
        "1",
        "onnx-fp32",
        files,
        signature,
        m.Needs("onnxruntime", "1.16"),
        m.Measured(0.0, 1.0, 10.0),
        m.Lineage(parameters={"epochs": 3, "rate": 0.1}),
    )
    return made, blobs


def changed(**values: object) -> bytes:
    made, _ = bundle()
    return msgspec.json.encode({**msgspec.to_builtins(made), **values})


def test_a_manifest_comes_back_and_its_bytes_are_stable() -> None:
    made, _ = bundle()
    assert m.decode(m.encode(made)) == made
    assert m.encode(m.decode(m.encode(made))) == m.encode(made)
    assert made.signature.columns == ["a", "b"]


def test_a_compressible_file_travels_compressed_and_comes_back() -> None:
    made, blobs = bundle()
    file = made.file("model")
    assert file.transfer.encoding == "zstd"
    assert file.transfer.size_bytes < file.size_bytes
    assert m.unpack_file(file, blobs["model"]) == b"model" * 100_000
    assert made.file("reference").transfer.encoding == "identity"
    assert made.transfer_bytes == sum(map(len, blobs.values()))


@pytest.mark.parametrize("change", ["flip", "cut", "extend"])
def test_a_changed_blob_is_refused(change: str) -> None:
    made, blobs = bundle()
    blob = bytearray(blobs["model"])
    if change == "flip":
        blob[len(blob) // 2] ^= 1
    elif change == "cut":
        del blob[-1:]
    else:
        blob += b"\0"
    with pytest.raises(MalformedError, match="differs from its digest"):
        m.unpack_file(made.file("model"), bytes(blob))


def test_a_blob_that_unpacks_to_more_than_the_manifest_says_is_refused() -> None:
    made, blobs = bundle()
    lying = msgspec.structs.replace(made.file("model"), size_bytes=10)
    with pytest.raises(TooLargeError):
        m.unpack_file(lying, blobs["model"])


@pytest.mark.parametrize(
    "digest", ["../../" + "./" * 25 + "precious", "A" * 64, "a" * 63 + "\n", "a" * 64 + "\n"]
)
def test_a_digest_that_could_name_another_file_than_its_own_is_refused(digest: str) -> None:
    made, _ = bundle()
    said = msgspec.to_builtins(made)
    said["files"][0]["transfer"]["digest"] = digest
    with pytest.raises(MalformedError, match="not a bundle manifest"):
        m.decode(msgspec.json.encode(said))


def test_what_is_not_whole_is_refused() -> None:
    made, _ = bundle()
    files = msgspec.to_builtins(made.files)
    for data, text in (
        (b"{}", "not a bundle manifest"),
        (b"\xff", "not a bundle manifest"),
        (b"[" * 100_000, "not a bundle manifest"),
        (changed(version=2), "manifest version 2"),
        (changed(files=files[:2]), "has no 'golden' file"),
        (changed(files=[*files, files[0]]), "lists a role twice"),
        (changed(model="x" * 65), "model"),
    ):
        with pytest.raises(MalformedError, match=text):
            m.decode(data)
    files[0]["transfer"]["blocks"] *= 2
    with pytest.raises(MalformedError, match="expected 1"):
        m.decode(changed(files=files))
    with pytest.raises(TooLargeError):
        m.decode(b" " * (m.MAX_MANIFEST_BYTES + 1))
