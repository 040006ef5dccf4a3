"""Bundles made elsewhere: nothing of them is believed."""

import io
import tarfile
from pathlib import Path

import joblib
import msgspec
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.registry import handed_in
from edgefleet_cloud.storage import Store
from edgefleet_converters import bundle_archive, bundles, pipeline
from edgefleet_converters.bundles import Bundle
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol import manifest
from edgefleet_protocol.manifest import Lineage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A converted classifier of irises."""
    folder = tmp_path_factory.mktemp("iris")
    rows = load_iris(as_frame=True).frame
    model = LogisticRegression(max_iter=1000).fit(rows.drop(columns="target"), rows["target"])
    joblib.dump(model, folder / "iris.joblib")
    rows.to_csv(folder / "iris.csv", index=False)
    request = ConversionRequest(
        str(folder / "iris.joblib"), str(folder / "iris.csv"), "target", variants=["onnx-fp32"]
    )
    result = pipeline.convert(request)
    return bundles.write_bundle(
        result.verified[0],
        result.reference,
        model="iris",
        version="9",
        lineage=Lineage(dataset="d" * 64, trainer="notebook"),
    )


def saved(bundle: Bundle, folder: Path) -> Path:
    bundles.save(bundle, folder)
    return folder


def changed(bundle: Bundle, **fields: object) -> Bundle:
    made = msgspec.structs.replace(bundle.manifest, **fields)
    return Bundle(made, manifest.encode(made), bundle.blobs)


def test_a_bundle_becomes_a_variant_under_the_names_of_this_hub(
    bundle: Bundle, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    found = handed_in.take_in(
        store, [saved(bundle, tmp_path / "0")], model="leaf", version="3", run_id=17
    )
    (entry,) = found.variants
    assert (entry.name, entry.state, entry.reason) == ("onnx-fp32", "verified", None)
    assert entry.manifest is not None
    kept = manifest.decode(store.read(entry.manifest))
    assert (kept.model, kept.model_version, kept.lineage.run) == ("leaf", "3", "17")
    assert kept.lineage.trainer == "notebook"
    assert kept.files == bundle.manifest.files
    assert all(store.has(file.transfer.digest) for file in kept.files)
    assert found.reference == bundle.manifest.file("reference").digest


def test_a_model_that_does_not_give_its_golden_vectors_here_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Every digest is right: whoever made the bundle put another model beside the vectors."""
    rows = load_iris(as_frame=True).frame
    other = LogisticRegression(C=1e-3).fit(
        rows.drop(columns="target"), rows["target"].sample(frac=1, random_state=0)
    )
    joblib.dump(other, tmp_path / "iris.joblib")
    rows.to_csv(tmp_path / "iris.csv", index=False)
    request = ConversionRequest(
        str(tmp_path / "iris.joblib"), str(tmp_path / "iris.csv"), variants=["onnx-fp32"]
    )
    file, blob = manifest.describe_file("model", pipeline.convert(request).verified[0].model)
    files = [file, *(held for held in bundle.manifest.files if held.role != "model")]
    made = msgspec.structs.replace(bundle.manifest, files=files)
    lying = Bundle(
        made,
        manifest.encode(made),
        {f.transfer.digest: (bundle.blobs | {file.transfer.digest: blob})[f.transfer.digest]
         for f in files},
    )  # fmt: skip
    found = handed_in.take_in(
        Store(tmp_path / "store"), [saved(lying, tmp_path / "0")], model="m", version="1", run_id=1
    )
    assert found.variants[0].state == "refused"
    assert "scores are off by up to" in (found.variants[0].reason or "")


def test_variants_of_different_versions_are_not_mixed(bundle: Bundle, tmp_path: Path) -> None:
    folders = [
        saved(bundle, tmp_path / "0"),
        saved(changed(bundle, model_version="10", variant="onnx-int8"), tmp_path / "1"),
    ]
    with pytest.raises(InvalidError, match="not variants of one version"):
        handed_in.take_in(Store(tmp_path / "s"), folders, model="m", version="1", run_id=1)


def test_one_variant_is_not_taken_twice(bundle: Bundle, tmp_path: Path) -> None:
    folders = [saved(bundle, tmp_path / "0"), saved(bundle, tmp_path / "1")]
    with pytest.raises(InvalidError, match="onnx-fp32 twice"):
        handed_in.take_in(Store(tmp_path / "s"), folders, model="m", version="1", run_id=1)


def test_an_archive_brings_bundles_over_whole_and_in_equal_bytes(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = saved(bundle, tmp_path / "made")
    first, second = io.BytesIO(), io.BytesIO()
    bundle_archive.pack([folder], first)
    (folder / bundles.MANIFEST_NAME).touch()
    bundle_archive.pack([folder], second)
    assert first.getvalue() == second.getvalue()
    archive = tmp_path / "bundles.tar"
    archive.write_bytes(first.getvalue())
    (tmp_path / "out").mkdir()
    (there,) = bundle_archive.unpack(archive, tmp_path / "out")
    assert bundles.load(there) == bundle


def test_a_damaged_bundle_is_not_packed(bundle: Bundle, tmp_path: Path) -> None:
    folder = saved(bundle, tmp_path / "made")
    digest = bundle.manifest.file("model").transfer.digest
    data = bytearray((folder / digest).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / digest).write_bytes(data)
    with pytest.raises(BadInputError, match="no whole bundle"):
        bundle_archive.pack([folder], io.BytesIO())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../0/manifest.json", tarfile.REGTYPE),
        ("/0/manifest.json", tarfile.REGTYPE),
        ("0/other.json", tarfile.REGTYPE),
        ("0/manifest.json", tarfile.SYMTYPE),
        ("0/manifest.json", tarfile.LNKTYPE),
        ("0/manifest.json", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_with_anything_else_in_it_is_refused_and_writes_nothing(
    name: str, kind: bytes, tmp_path: Path
) -> None:
    archive = tmp_path / "bundles.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInputError, match="the archive holds"):
        bundle_archive.unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").rglob("*")) == []


@pytest.mark.parametrize("data", [b"", b"no archive" * 100, b"\0" * 10240])
def test_what_is_no_archive_of_bundles_is_refused(data: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "bundles.tar"
    archive.write_bytes(data)
    with pytest.raises(BadInputError, match="archive"):
        bundle_archive.unpack(archive, tmp_path)
