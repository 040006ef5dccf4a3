"""Rows to tensors, golden vectors, and which device takes which variant."""

import msgspec
import numpy as np
import pytest

from edgefleet_protocol import golden, profiles, rows
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Needs, Signature, Tensor
from edgefleet_protocol.sketch import Feature

IMAGE = Signature(
    "classification",
    [Tensor("image", "float32", [None, 2, 2, 1], ["p0", "p1", "p2", "p3"])],
    [Tensor("p", "float32", [None, 2])],
    "p",
)
MIXED = Signature(
    "classification",
    [Tensor("age", "float32", [None, 1], ["age"]), Tensor("town", "string", [None, 1], ["town"])],
    [Tensor("p", "float32", [None, 2])],
    "p",
)


def test_an_array_is_reshaped_to_the_input() -> None:
    tensors = rows.bind(IMAGE, np.arange(8.0).reshape(2, 4))
    assert tensors["image"].shape == (2, 2, 2, 1)
    assert tensors["image"].dtype == np.float32


def test_columns_are_taken_by_name() -> None:
    tensors = rows.bind(MIXED, {"town": ["Bern", "Ulm"], "age": [30, 40]})
    assert tensors["town"].tolist() == [["Bern"], ["Ulm"]]
    assert tensors["age"].tolist() == [[30.0], [40.0]]


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_missing_text_becomes_the_category_of_missing_values(missing: object) -> None:
    tensors = rows.bind(MIXED, {"town": np.array([missing, "Ulm"], object), "age": [30, 40]})
    assert tensors["town"].tolist() == [["nan"], ["Ulm"]]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"age": [1]}, r"lack the columns \['town'\]"),
        ({"age": [1], "town": ["x"], "extra": [2]}, r"unknown columns \['extra'\]"),
        ({"age": ["old"], "town": ["x"]}, "column 'age' must hold numbers"),
    ],
)
def test_wrong_columns_are_refused(given: dict[str, list[object]], text: str) -> None:
    with pytest.raises(MalformedError, match=text):
        rows.bind(MIXED, given)  # type: ignore[arg-type]  # wrong on purpose


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(MalformedError, match=r"expected \(n, 4\)"):
        rows.bind(IMAGE, np.zeros((1, 3)))


def test_categories_become_their_index() -> None:
    features = [Feature("age", edges=[0.0, 1.0]), Feature("town", "categorical", [], ["Bern"])]
    table = {"age": [1, None], "town": ["Bern", "Rome"]}
    found = rows.numbers(features, table)
    assert found[0].tolist() == [1.0, 0.0]
    assert np.isnan(found[1, 0])
    assert found[1, 1] == -1.0
    assert np.isnan(rows.numbers(features, {"age": [1], "town": [None]})[0, 1])


def vectors(**changes: object) -> golden.GoldenVectors:
    values: dict[str, object] = {
        "columns": ["a"],
        "rows": 2,
        "numeric": np.array([1.0, 2.0]).tobytes(),
        "scores": np.array([[0.9, 0.1], [0.2, 0.8]], "<f4").tobytes(),
        "width": 2,
        "atol": 0.05,
        "min_agreement": 1.0,
    }
    return golden.GoldenVectors(**{**values, **changes})  # type: ignore[arg-type]  # by name


def test_golden_vectors_come_back_and_pass_themselves() -> None:
    read = golden.decode(golden.encode(vectors()))
    assert read == vectors()
    assert golden.faults(read, read.expected()) == []


def test_a_runtime_that_computes_wrongly_is_seen() -> None:
    right = vectors().expected()
    assert golden.faults(vectors(), right + np.float32(0.049)) == []
    assert "off by up to" in golden.faults(vectors(), right + np.float32(0.051))[0]
    assert "50.0% of the rows" in golden.faults(vectors(atol=9.0), right[[0, 0]])[0]
    assert "not finite" in golden.faults(vectors(), right * np.nan)[0]
    assert "shape" in golden.faults(vectors(), right[:1])[0]


def test_golden_vectors_that_do_not_fit_are_refused() -> None:
    for changes in ({"rows": 3}, {"width": 1}, {"text": {"a": ["x"]}}, {"text": {"b": ["x", "y"]}}):
        with pytest.raises(MalformedError, match="do not hold"):
            golden.decode(golden.encode(vectors(**changes)))


NEEDS = Needs("onnxruntime", "1.18", memory_bytes=256)
DEVICE = profiles.DeviceProfile("rpi4", {"onnxruntime": "1.18.1"}, 1024)


def test_a_device_that_offers_just_enough_fits() -> None:
    assert profiles.misfits(NEEDS, DEVICE) == []


@pytest.mark.parametrize(
    ("device", "needs", "text"),
    [
        (profiles.DeviceProfile("rpi4", {"litert": "2.3"}, 1024), NEEDS, "the device has litert"),
        (profiles.DeviceProfile("rpi4", {}, 1024), NEEDS, "the device has none"),
        (profiles.DeviceProfile("rpi4", {"onnxruntime": "1.17.3"}, 1024), NEEDS, ">= 1.18"),
        (profiles.DeviceProfile("rpi4", {"onnxruntime": "next"}, 1024), NEEDS, ">= 1.18"),
        (profiles.DeviceProfile("rpi4", {"onnxruntime": "1.18"}, 1023), NEEDS, "grants 255"),
        (DEVICE, Needs("onnxruntime", "1.18", boards=["rpi5"]), "made for rpi5"),
    ],
)
def test_a_misfit_is_named(device: profiles.DeviceProfile, needs: Needs, text: str) -> None:
    found = profiles.misfits(needs, device)
    assert len(found) == 1
    assert text in found[0]


def test_versions_compare_by_number() -> None:
    device = profiles.DeviceProfile("rpi4", {"onnxruntime": "1.9"}, 1024)
    assert profiles.misfits(Needs("onnxruntime", "1.10"), device) != []


LITE = Needs("litert", "1.1", alternatives={"tflite-runtime": "2.14"})


def lite_device(**runtimes: str) -> profiles.DeviceProfile:
    named = {name.replace("_", "-"): version for name, version in runtimes.items()}
    return profiles.DeviceProfile("rpi4", named, 1024)


@pytest.mark.parametrize("runtimes", [{"litert": "1.1.2"}, {"tflite_runtime": "2.14.0"}])
def test_each_runtime_of_a_family_is_held_to_its_own_lowest_version(
    runtimes: dict[str, str],
) -> None:
    assert profiles.misfits(LITE, lite_device(**runtimes)) == []


@pytest.mark.parametrize(
    ("needs", "runtimes", "text"),
    [
        (Needs("litert", "2.0"), {"tflite_runtime": "2.14.0"},
         "needs runtime litert; the device has tflite-runtime 2.14.0"),
        (LITE, {"tflite_runtime": "2.13.9"},
         "needs tflite-runtime >= 2.14; the device has 2.13.9"),
        (LITE, {"litert": "1.0.9"}, "needs litert >= 1.1; the device has 1.0.9"),
        (LITE, {"onnxruntime": "1.31"},
         "needs runtime litert or tflite-runtime; the device has onnxruntime 1.31"),
    ],
)  # fmt: skip
def test_a_version_of_tflite_runtime_is_never_taken_for_one_of_litert(
    needs: Needs, runtimes: dict[str, str], text: str
) -> None:
    assert profiles.misfits(needs, lite_device(**runtimes)) == [text]


def test_a_manifest_from_before_there_were_alternatives_is_read() -> None:
    old = msgspec.json.decode(b'{"runtime": "litert", "runtime_min": "2.0"}', type=Needs)
    assert old == Needs("litert", "2.0", alternatives={})
    assert msgspec.json.encode(old) == b'{"runtime":"litert","runtime_min":"2.0"}'


@pytest.mark.parametrize("name", ["litert", "tflite-runtime"])
def test_a_device_serves_the_family_by_any_of_its_runtimes(name: str) -> None:
    assert profiles.serves("litert", {name: "0"})
    assert not profiles.serves("onnxruntime", {name: "0"})
