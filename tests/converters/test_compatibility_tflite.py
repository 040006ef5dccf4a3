"""What is told of TFLite files and releases of LiteRT and tflite-runtime, without running them."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_converters.compatibility import (
    check,
    flatbuffer,
    probe_models,
    probe_sums,
    probe_tflite,
    tflite_graph,
    tflite_kernels,
    tflite_schema,
    tflite_versions,
)
from edgefleet_converters.compatibility.tflite_versions import Operator, Tensor
from edgefleet_converters.errors import UnsupportedError

OLD, NEW = ("tflite-runtime", "2.14"), ("ai-edge-litert", "2.3")
MAX_LOOK_BYTES = 32 << 20


def reasons(data: bytes, runtime: tuple[str, str] = NEW) -> list[str]:
    return check.judge(tflite_graph.look(data), *runtime).reasons


def probe(name: str) -> bytes:
    return bytes.fromhex(probe_sums.questions()[name]["model"])


def test_the_shipped_table_says_what_the_installed_runtime_says() -> None:
    from importlib import metadata

    table = tflite_kernels.shipped()["ai-edge-litert"]
    installed = metadata.version("ai-edge-litert")
    held = next(release for release in table if release.version == installed)
    for operator in ("ADD", "CONV_2D", "FULLY_CONNECTED", "DILATE"):
        code = tflite_schema.OPERATORS.index(operator)
        last = held.versions[code][-1]
        assert probe_tflite.is_registered(probe_models.tflite_model(code, last).hex())
        assert not probe_tflite.is_registered(probe_models.tflite_model(code, last + 1).hex())
    questions = probe_sums.questions()
    wrong = [name for name, question in questions.items() if not probe_tflite.computes(question)]
    assert sorted(wrong) == held.wrong
    custom = probe_models.tflite_questions()["custom"]
    assert [name for name in custom if probe_tflite.has_custom(custom[name])] == held.custom
    unknown = probe_models.tflite_model(tflite_schema.CUSTOM, 1, "Sinh")
    assert not probe_tflite.has_custom(unknown.hex())


def test_the_schema_is_that_of_the_package() -> None:
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items()
             if not name.startswith("_")}  # fmt: skip
    assert tuple(names[number] for number in sorted(names)) == tflite_schema.OPERATORS
    types = {number: name.lower() for name, number in vars(schema.TensorType).items()
             if not name.startswith("_")}  # fmt: skip
    assert [name for name, _ in tflite_schema.TYPES] == [types[n] for n in sorted(types)]
    assert names[tflite_schema.CUSTOM] == "CUSTOM"


def test_a_file_that_would_answer_nonsense_is_refused_for_the_old_runtime_only() -> None:
    data = probe("FULLY_CONNECTED float32*int8 per channel")  # states version 1
    assert reasons(data) == []
    assert reasons(data, OLD) == [
        (
            "it has FULLY_CONNECTED up to version 10; this one needs version 12 for float32, int8,"
            " float32 -> float32, though the file states 1: it would load, and compute nonsense"
            " (operator 0:0)"
        )
    ]
    facts = tflite_graph.look(data)
    assert check.lowest_runtime(facts, "ai-edge-litert") == "1.0"
    assert check.lowest_alternatives(facts) == {}
    assert tflite_graph.required_versions(data) == [12]


def test_one_scale_for_all_channels_runs_on_the_old_runtime_too() -> None:
    facts = tflite_graph.look(probe("FULLY_CONNECTED float32*int8 per tensor"))
    assert check.lowest_alternatives(facts) == {"tflite-runtime": "2.14"}
    assert facts.tflite is not None
    assert [operator.needed for operator in facts.tflite.operators] == [3]


def test_layers_that_a_release_computes_wrongly_are_refused_whatever_their_version() -> None:
    data = probe("CONV_2D float32*int4 per channel")
    assert reasons(data, OLD)[0].startswith(
        "it does not compute CONV_2D float32*int4 per channel right, though it has the operator"
    )
    assert check.lowest_runtime(tflite_graph.look(data), "ai-edge-litert") == "1.1"


def op(name: str, inputs: list[Tensor], output: Tensor) -> Operator:
    return Operator(name, list(inputs), [output], None)


F, I8, I16 = Tensor("float32", [1, 4]), Tensor("int8", [1, 4]), Tensor("int16", [1, 4])


@pytest.mark.parametrize(
    ("operator", "version"),
    [
        (op("ADD", [F, F], F), 1),
        (op("ADD", [I8, I8], I8), 2),
        (op("ADD", [Tensor("int64", [4])] * 2, Tensor("int64", [4])), 4),
        (op("CONV_2D", [F, F, F], F), 1),
        (op("CONV_2D", [I16, I8, Tensor("int64", [4])], I16), 1),
        (op("CONV_2D", [I16, I8, Tensor("int32", [4])], I16), 8),
        (op("CONV_2D", [Tensor("float32", [1, 8, 8, 4]), Tensor("float32", [4, 1, 1, 2])], F), 6),
        (op("FULLY_CONNECTED", [F, Tensor("int8", [4, 4], 1)], F), 6),
        (op("FULLY_CONNECTED", [F, Tensor("int8", [4, 4], 4), F], F), 12),
        (op("FULLY_CONNECTED", [F, Tensor("int8", [1, 4], 1), F], F), 3),
        (op("DIV", [Tensor("float32", [1] * 5), F], F), 2),
        (op("DIV", [Tensor("float32", [1] * 4), F], F), 1),
        (op("TRANSPOSE", [Tensor("float32", [1] * 7)], F), 8),
        (op("TRANSPOSE", [Tensor("float32", [1] * 4)], F), 1),
        (op("BROADCAST_TO", [F], F), 2),
        (op("CAST", [Tensor("float16", [1])], F), 5),
        (op("RESHAPE", [F], F), 1),
    ],
)
def test_versions_are_recomputed_from_types_and_shapes(operator: Operator, version: int) -> None:
    assert tflite_versions.needed(operator) == version


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken_inputs/lfs_pointer_har_int8.tflite", "it is a Git LFS pointer"),
        ("broken_inputs/tf_issue_115308_8bytes.tflite", "it has only 8 bytes"),
        ("broken_inputs/flip8_0_kws.tflite", "it is damaged or cut short: an offset leads to"),
    ],
)
def test_files_that_are_no_models_are_unreadable(shared_models: Path, name: str, text: str) -> None:
    facts = check.inspect((shared_models / name).read_bytes())
    assert facts.unreadable.startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken_inputs/coral_model_invoking_error.tflite", "the custom operator fake-op-double"),
        ("litert/custom_sinh.tflite", "the custom operator Sinh is not in it"),
        ("derived/flex_bincount.tflite", "the operator FlexBincount needs all of TensorFlow"),
        ("coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite", "it is compiled for an Edge TPU"),
        ("tflm/person_detect.tflite",
         "tensor 33 is quantized along dimension 3 (quantized_dimension) of 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("runtime", [OLD, NEW])
def test_known_traps_are_refused_by_every_release(
    shared_models: Path, name: str, text: str, runtime: tuple[str, str]
) -> None:
    found = reasons((shared_models / name).read_bytes(), runtime)
    assert found[0].startswith(text)


@pytest.mark.parametrize(
    "name",
    ["microwakeword/okay_nabu.tflite", "litert/add_unknown_dimensions.tflite",
     "litert/multi_signature_def.tflite", "mlperf_tiny/ic_resnet8_int8.tflite",
     "coral/mobilenet_v1_0.25_128_quant.tflite", "tflm/hello_world_int8.tflite"],
)  # fmt: skip
def test_real_models_are_known_to_run_everywhere(shared_models: Path, name: str) -> None:
    facts = tflite_graph.look((shared_models / name).read_bytes())
    assert check.lowest_runtime(facts, "ai-edge-litert") == "1.0"
    assert check.lowest_alternatives(facts) == {"tflite-runtime": "2.14"}


def test_what_a_file_says_of_itself_is_kept_and_not_believed(shared_models: Path) -> None:
    facts = tflite_graph.look((shared_models / "mlperf_tiny/ic_resnet8_int8.tflite").read_bytes())
    assert facts.tflite is not None
    assert facts.tflite.stated_runtime == "1.5.0"
    assert max(operator.needed for operator in facts.tflite.operators) == 4


def test_versions_above_those_of_a_release_are_refused() -> None:
    code = tflite_schema.OPERATORS.index("FULLY_CONNECTED")
    facts = tflite_graph.look(probe("FULLY_CONNECTED int8*int4 per tensor"))
    assert check.judge(facts, *OLD).fits
    assert tflite_kernels.shipped()["tflite-runtime"][0].versions[code][-1] == 10


def test_a_model_of_the_other_format_is_refused() -> None:
    facts = tflite_graph.look(probe("CONV_2D float32*int8 per tensor"))
    assert check.judge(facts, "onnxruntime", "1.20").reasons == [
        "it is a model of the format tflite; onnxruntime runs onnx"
    ]
    with pytest.raises(UnsupportedError, match="runs onnx"):
        check.lowest_runtime(facts, "onnxruntime")


def test_memory_is_constants_and_what_lives_at_the_same_time() -> None:
    facts = tflite_graph.look(probe("FULLY_CONNECTED float32*int8 per tensor"))
    assert facts.weights_bytes == 4 * 8 + 4 * 4
    assert facts.activation_bytes == 8 * 4 + 4 * 4


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damaged_files_are_told_of_within_bounds(data: st.DataObject) -> None:
    whole = bytearray(probe("CONV_2D int8*int8 per channel"))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    del whole[data.draw(st.integers(8, len(whole))) :]
    tracemalloc.start()
    facts = tflite_graph.look(bytes(whole))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert check.judge(facts, *NEW).runtime == NEW[0]
    assert peak < MAX_LOOK_BYTES


def test_a_vector_longer_than_the_file_is_damage() -> None:
    whole = bytearray(probe("CONV_2D int8*int8 per channel"))
    root = flatbuffer.root(bytes(whole))
    start, _ = root.vector(tflite_schema.ModelField.BUFFERS, 4)
    whole[start - 4 : start] = np.array(2**31 - 1, "<u4").tobytes()
    assert "leaves the file" in tflite_graph.look(bytes(whole)).unreadable
    with pytest.raises(flatbuffer.DamagedError, match="a file of 3 bytes holds no table"):
        flatbuffer.root(b"abc")
