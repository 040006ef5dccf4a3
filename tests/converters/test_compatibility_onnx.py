"""What is told of ONNX files and releases of ONNX Runtime, without running them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters import child
from edgefleet_converters.compatibility import (
    check,
    kernels,
    onnx_graph,
    probe_models,
    probe_onnxruntime,
    releases,
)
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.kernels import OPEN, Kernel
from edgefleet_converters.errors import BadInputError, UnsupportedError

FLOAT, NEWEST = TensorProto.FLOAT, "1.31.1"
Node = Any


def model(
    *nodes: Node,
    opset: int = 17,
    ir: int = 8,
    kind: int = FLOAT,
    imports: dict[str, int] | None = None,
    constants: list[Any] | None = None,
) -> bytes:
    """Return a model from `x` of shape (2, 3) to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y", kind, None)],
        constants or [],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(name, version) for name, version in (imports or {}).items()]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    return bytes(made.SerializeToString())


def one(operator: str, *inputs: str, domain: str = "", **attributes: Any) -> Node:
    return helper.make_node(
        operator, list(inputs) or ["x"], ["y"], name="n", domain=domain, **attributes
    )


def look(data: bytes, folder: Path | None = None) -> Facts:
    return onnx_graph.look(data, None if folder is None else str(folder))


def reasons(data: bytes, version: str = NEWEST) -> list[str]:
    return check.judge(look(data), "onnxruntime", version).reasons


def test_the_shipped_table_says_what_the_installed_runtime_says() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    table = kernels.shipped()
    asked = releases.Asked("onnxruntime", onnxruntime.__version__)
    index = table.versions.index(releases.table_for(asked, table.versions))
    said = {
        (kernel.domain, kernel.op_name, *kernel.version_range)
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == probe_onnxruntime.CPU
    }
    held = {
        (kernel.domain, kernel.operator, kernel.first, kernel.last)
        for domain, operator in {(domain, operator) for domain, operator, _, _ in said}
        for kernel in table.of(index, domain, operator)
    }
    assert held == said


def test_the_table_agrees_with_the_kernel_lists_made_independently(shared_models: Path) -> None:
    import json

    table = kernels.shipped()
    lists = sorted((shared_models.parent / "reference" / "ort_kernels").glob("*.json"))
    assert len(lists) == len(table.versions)
    for index, version in enumerate(table.versions):
        path = next(path for path in lists if path.stem.endswith(f"_{version}"))
        for name, ranges in json.loads(path.read_text("utf-8")).items():
            domain, operator = name.split("::")
            held = {
                (kernel.first, kernel.last)
                for kernel in table.of(index, domain.replace("ai.onnx", "", 1)
                                       if domain == "ai.onnx" else domain, operator)
            }  # fmt: skip
            assert held == {tuple(pair) for pair in ranges}, (version, name)


@pytest.mark.parametrize(
    ("opset", "ir", "ml", "lowest"),
    [(19, 9, 3, "1.16"), (20, 9, 3, "1.17"), (19, 9, 4, "1.17"), (21, 10, 5, "1.18"),
     (22, 10, 5, "1.21"), (23, 11, 5, "1.23"), (25, 13, 5, "1.24"), (26, 13, 5, "1.25")],
)  # fmt: skip
def test_versions_are_held_against_the_highest_that_each_release_loads(
    opset: int, ir: int, ml: int, lowest: str
) -> None:
    data = model(one("Relu"), opset=opset, ir=ir, imports={"ai.onnx.ml": ml})
    assert check.lowest_runtime(look(data), "onnxruntime") == lowest


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"opset": 999}, "opset 999 is newer than 26, the highest that it loads"),
        ({"ir": 14}, "IR version 14 is newer than 13"),
        ({"imports": {"ai.onnx.ml": 6}}, "ai.onnx.ml opset 6 is newer than 5"),
    ],
)
def test_what_no_release_loads_is_refused(changes: dict[str, Any], text: str) -> None:
    data = model(one("Relu"), **changes)
    assert reasons(data)[0].startswith(text)
    with pytest.raises(UnsupportedError, match=r"onnxruntime 1\.31\.1 does not run it"):
        check.lowest_runtime(look(data), "onnxruntime")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (model(one("Conv", "x", "x"), kind=TensorProto.DOUBLE),
         "operator Conv of opset 11 has no kernel for tensor(double) (node 'n')"),
        (model(one("Relu"), kind=TensorProto.BFLOAT16),
         "operator Relu of opset 14 has no kernel for tensor(bfloat16) (node 'n')"),
        (model(one("Tokenize", domain="ai.onnx.contrib"), imports={"ai.onnx.contrib": 1}),
         ("operator ai.onnx.contrib.Tokenize is a custom one: no release has kernels of the domain"
         " ai.onnx.contrib (node 'n')")),
        (model(one("Rellu")), "operator Rellu does not exist (node 'n')"),
        (model(one("Relu"), kind=TensorProto.STRING),
         "node 'n' (Relu): 'x' is tensor(string); the operator takes"),
        (model(one("Relu", alpha=1.0)),
         "node 'n' (Relu): it has the attribute 'alpha', which the operator does not have"),
        (model(one("Relu", "z")), "node 'n' (Relu) reads 'z', which nothing makes"),
        (model(one("Relu", "y")), "its nodes read each other in a circle"),
        (model(one("Relu"), one("Abs")), "'y' is made by two nodes"),
        (model(one("Gemm")), "node 'n' (Gemm): it has 1 inputs; the operator takes 2 to 3"),
        (model(one("LSTM", "x", "x", "x", layout=1)),
         "node 'n' (LSTM): layout 1 (batch first) is computed by no release"),
    ],
)  # fmt: skip
def test_what_the_runtime_refuses_is_refused_with_the_reason(data: bytes, text: str) -> None:
    assert any(reason.startswith(text) for reason in reasons(data)), reasons(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"."):  # ONNX Runtime's errors have no common base
        onnxruntime.InferenceSession(data, options, providers=[probe_onnxruntime.CPU])


@pytest.mark.parametrize(
    ("data", "lowest"),
    [
        (model(one("Relu"), kind=TensorProto.FLOAT16), "1.16"),
        (model(one("Gelu"), opset=20), "1.17"),
        (model(one("HardSwish")), "1.16"),
        (model(one("Swish"), opset=24, ir=10), "1.24"),
        (model(one("QuickGelu", domain="com.microsoft"), imports={"com.microsoft": 1}), "1.16"),
    ],
)
def test_casts_and_definitions_stand_in_for_missing_kernels(data: bytes, lowest: str) -> None:
    assert check.lowest_runtime(look(data), "onnxruntime") == lowest
    onnxruntime.InferenceSession(data, providers=[probe_onnxruntime.CPU])


@pytest.mark.parametrize("end", ["first", "above"])
def test_a_kernel_with_an_open_range_takes_its_first_version_only(end: str) -> None:
    version = 13 if end == "first" else 14
    assert kernels.covers(Kernel("", "Abs", 13, OPEN, {}), version) == (end == "first")
    assert kernels.covers(Kernel("", "Abs", 13, 14, {}), version)
    assert not kernels.covers(Kernel("", "Abs", 13, 14, {}), 15)
    assert not kernels.covers(Kernel("", "Abs", 13, 14, {}), 12)


def loop(condition: bool, trips: int | None) -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]),
         helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, None)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", FLOAT, None)],
    )  # fmt: skip
    constants = [numpy_helper.from_array(np.array(condition), "go0")]
    if trips is not None:
        constants.append(numpy_helper.from_array(np.array(trips), "trips"))
    node = one("Loop", "" if trips is None else "trips", "go0", "x", body=body)
    return model(node, constants=constants)


@pytest.mark.parametrize(
    ("condition", "trips", "ends"),
    [(True, None, False), (True, onnx_graph.ENDLESS_TRIPS, False),
     (True, onnx_graph.ENDLESS_TRIPS - 1, True), (True, 3, True), (False, None, True)],
)  # fmt: skip
def test_a_loop_that_provably_never_ends_is_refused(
    condition: bool, trips: int | None, ends: bool
) -> None:
    found = reasons(loop(condition, trips))
    assert (found == []) == ends
    assert ends or "is a loop that never ends: its condition stays true" in found[0]


def external(location: str, length: int) -> bytes:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model(one("Add", "x", "w"), constants=[tensor])


@pytest.mark.parametrize(
    ("location", "length", "text"),
    [
        ("w.bin", 16, ""),
        ("w.bin", 30_000_000_000, "is said to be 30000000000 bytes from 0 of w.bin, which has 16"),
        ("gone.bin", 16, "lies in another file that cannot be used (gone.bin)"),
        ("../w.bin", 16, "lies in '../w.bin', which is not inside the model's folder"),
        ("/etc/hostname", 16, "is not inside the model's folder"),
    ],
)
def test_external_data_must_be_there_whole_and_inside_the_folder(
    tmp_path: Path, location: str, length: int, text: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    found = look(external(location, length), tmp_path).faults
    assert [text in fault for fault in found] == ([True] if text else [])
    assert "a bundle has one model file" in look(external(location, length)).faults[0]


def test_a_constant_of_terabytes_is_refused_without_being_made() -> None:
    huge = TensorProto(name="w", data_type=FLOAT, dims=[1 << 40])
    huge.raw_data = b"1234"
    assert look(model(one("Add", "x", "w"), constants=[huge])).faults == [
        "constant 'w' is declared as 4398046511104 bytes and holds 4"
    ]
    shape = numpy_helper.from_array(np.array([1 << 40]), "shape")
    node = one("ConstantOfShape", "shape")
    found = check.inspect(model(node, constants=[shape]))
    assert "more than any board has" in check.judge(found, "onnxruntime", NEWEST).reasons[0]


def test_memory_is_weights_and_what_lives_at_the_same_time() -> None:
    weights = numpy_helper.from_array(np.ones((3, 100), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["y"]),
    ]
    found = look(model(*nodes, constants=[weights]))
    assert found.weights_bytes == 3 * 100 * 4
    # x, h and r are not all needed at once: the largest moment is h and r.
    assert found.activation_bytes == 2 * (2 * 100 * 4)


def test_an_operator_of_a_foreign_domain_gets_types_from_the_runtimes_own_schema() -> None:
    constants = [
        numpy_helper.from_array(np.zeros((3, 4), np.uint8), "b"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QGemm", ["q", "s", "z", "b", "s", "z", "", "", ""], ["g"],
                         domain="com.microsoft"),
        helper.make_node("ReduceMax", ["g"], ["y"]),
    ]  # fmt: skip
    data = model(*nodes, imports={"com.microsoft": 1}, constants=constants)
    assert reasons(data) == []


def test_a_release_without_a_table_is_not_guessed() -> None:
    facts = look(model(one("Relu")))
    for version in ("1.32", "1.15.1", "1", "next"):
        with pytest.raises(BadInputError, match="nothing is known of it; tables are held"):
            check.judge(facts, "onnxruntime", version)
    with pytest.raises(BadInputError, match="no runtime is called 'torch'"):
        check.judge(facts, "torch", "2")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken_inputs/lfs_pointer_maskrcnn.onnx", "it is a Git LFS pointer"),
        ("broken_inputs/made_zero_length.onnx", "it is empty"),
        ("broken_inputs/trunc50_keypoint.onnx", "it is no ONNX model, or damaged or cut short"),
    ],
)
def test_files_that_are_no_models_are_unreadable(shared_models: Path, name: str, text: str) -> None:
    facts = check.inspect((shared_models / name).read_bytes())
    assert facts.unreadable.startswith(text)
    verdict = check.judge(facts, "onnxruntime", NEWEST)
    assert (verdict.fits, verdict.readable) == (False, False)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("silero_vad/silero_vad_16k_op15.onnx", "1.16"),
        ("derived/ultraface_slim320_int8_qdq.onnx", "1.18"),  # it imports ai.onnx.ml 5
        ("ultraface/version-slim-320.onnx", "1.16"),
        ("gesture_onnx/keypoint_classifier.onnx", "1.16"),
    ],
)
def test_real_models_are_known_to_run(shared_models: Path, name: str, lowest: str) -> None:
    data = (shared_models / name).read_bytes()
    assert check.lowest_runtime(look(data), "onnxruntime") == lowest


def test_a_look_that_takes_too_much_is_no_model(tmp_path: Path) -> None:
    limits = child.ChildLimits(time_s=0.0)
    facts = check.inspect(model(one("Relu")), limits=limits)
    assert facts.unreadable.startswith("it cannot be looked at safely: ")


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files_never_harm_who_asks(shared_models: Path, data: st.DataObject) -> None:
    whole = bytearray((shared_models / "gesture_onnx/keypoint_classifier.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    facts = check.inspect(bytes(whole), limits=child.ChildLimits(30.0, 1 << 30))
    assert check.judge(facts, "onnxruntime", NEWEST).runtime == "onnxruntime"


def test_probes_need_just_the_version_that_they_are_for() -> None:
    assert probe_onnxruntime.loads(probe_models.onnx_model(opset=26, ir=3).hex())
    assert not probe_onnxruntime.loads(probe_models.onnx_model(opset=27, ir=3).hex())


def test_tables_come_back_as_they_were_packed(tmp_path: Path) -> None:
    table = kernels.decode(kernels.SHIPPED.read_bytes())
    assert kernels.decode(kernels.encode(table)) == table
    assert kernels.SHIPPED.stat().st_size < 32_000
    shutil.rmtree(tmp_path)  # nothing was written besides
