"""The protocol without a socket: requests, tensors, replies, encodings, addresses."""

import gzip
import json
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from msgspec import Raw

from edgefleet_agent.config import Config, LocalBroker, LocalTopic, Server
from edgefleet_agent.inference.prediction import Inference
from edgefleet_agent.server import address, datatypes, encodings, replies, requests
from edgefleet_agent.server.address import Tcp, is_local_name
from edgefleet_agent.server.refusal import RequestError, shown
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Slot

T = TypeVar("T")

ONE = Signature(
    "classification",
    [Tensor("x", "float32", [None, 4], ["a", "b", "c", "d"])],
    [Tensor("p", "float32", [None, 3]), Tensor("label", "string", [None])],
    "p",
    "label",
    ["red", "green", "blue"],
)
CLASSES = {"classification": 2}
# Two inputs, one of them text; and one without a batch.
TWO = Signature(
    "regression",
    [Tensor("n", "float64", [None, 2], ["a", "b"]), Tensor("s", "string", [None, 1], ["c"])],
    [Tensor("y", "float32", [None, 1])],
    "y",
)
UNBATCHED = Signature(
    "score", [Tensor("sound", "int16", [1, 8])], [Tensor("y", "float32", [1, 1])], "y"
)


def head(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(name: str = "x", datatype: str = "FP32", shape: Any = (1, 4), **more: Any) -> Any:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def binary(size: int, **more: Any) -> Any:
    return tensor(parameters={"binary_data_size": size}, **more)


def answered_or_refused(call: Callable[[], T]) -> T | None:
    """Return what `call` does, None if it says that the request is wrong, and nothing else."""
    try:
        return call()
    except RequestError as error:
        if not 400 <= error.status < 500:
            raise
        return None


def refusal(body: bytes, head_bytes: int | None = None, signature: Signature = ONE) -> str:
    with pytest.raises(RequestError) as error:
        requests.parse(body, head_bytes, signature)
    return str(error.value)


# -- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [[1, 2.5, -3, None], [[1, 2.5, -3, None]]], ids=["flat", "nested"])
def test_json_data_may_be_flat_or_nested_and_null_is_nan(data: Any) -> None:
    request = requests.parse(head(tensor(data=data), id="7"), None, ONE)
    assert request.id == "7"
    assert request.tensors["x"].dtype == np.float32
    np.testing.assert_array_equal(
        request.tensors["x"], np.array([[1, 2.5, -3, math.nan]], np.float32)
    )
    assert request.outputs == {"p": False, "label": False}


def test_binary_tensors_follow_the_head_in_the_order_of_the_inputs() -> None:
    text = b"".join(struct.pack("<I", len(part)) + part for part in (b"\xc3\xa4", b""))
    numbers = np.array([[1, 2], [3, 4]], "<f8").tobytes()
    start = head(
        tensor("s", "BYTES", (2, 1), parameters={"binary_data_size": len(text)}),
        tensor("n", "FP64", (2, 2), parameters={"binary_data_size": len(numbers)}),
        parameters={"binary_data_output": True},
    )
    request = requests.parse(start + text + numbers, len(start), TWO)
    assert request.tensors["s"].tolist() == [["ä"], [""]]
    assert request.tensors["n"].tolist() == [[1, 2], [3, 4]]
    assert request.outputs == {"y": True}


@pytest.mark.parametrize("padding", range(8))
def test_binary_data_is_aligned_for_the_runtime_wherever_it_starts(padding: int) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    start = head(binary(len(data)), id="x" * padding)
    array = requests.parse(start + data, len(start), ONE).tensors["x"]
    assert array.flags.aligned
    assert array.tolist() == [[0, 1, 2, 3]]


def test_outputs_are_those_that_are_asked_for_each_in_its_own_form() -> None:
    body = head(
        tensor(data=[0] * 4),
        outputs=[{"name": "label", "parameters": {"binary_data": False}}, {"name": "p"}],
        parameters={"binary_data_output": True},
    )
    assert list(requests.parse(body, None, ONE).outputs.items()) == [("label", False), ("p", True)]


@pytest.mark.parametrize(
    ("datatype", "numpy_type"),
    [("FP16", "<f2"), ("INT8", "<i1"), ("UINT8", "<u1"), ("INT16", "<i2"), ("UINT16", "<u2")],
)
def test_a_datatype_that_fits_into_the_models_is_widened(datatype: str, numpy_type: str) -> None:
    data = np.array([1, 2, 3, 4], numpy_type).tobytes()
    start = head(binary(len(data), datatype=datatype))
    array = requests.parse(start + data, len(start), ONE).tensors["x"]
    assert (array.dtype, array.tolist()) == (np.float32, [[1, 2, 3, 4]])


def test_bf16_becomes_the_same_number_in_float32() -> None:
    values = np.array([1.0, -2.5, math.inf, 3.140625], np.float32)
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    start = head(binary(len(data), datatype="BF16"))
    assert requests.parse(start + data, len(start), ONE).tensors["x"].tolist() == [values.tolist()]


@pytest.mark.parametrize("datatype", ["FP64", "INT32", "INT64", "BYTES"])
def test_a_datatype_that_would_be_rounded_is_refused(datatype: str) -> None:
    assert refusal(head(tensor(datatype=datatype, data=[0] * 4))) == (
        f"input 'x': the datatype is {datatype}; the model takes FP32"
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is no inference request: Input data was truncated"),
        (b"[" * 100_000, "the body is no inference request"),
        (b'{"inputs": [{"name": "\xff"}]}', "the body is no inference request"),
        (b'{"inputs": []}', "the request has the inputs none; the model takes 'x'"),
        (head(tensor("y", data=[0] * 4)), "the request has the inputs 'y'; the model takes 'x'"),
        (
            head(tensor(data=[0] * 4), tensor(data=[0] * 4)),
            "the request has the inputs 'x', 'x'; the model takes 'x'",
        ),
        (head(tensor(datatype="FP31", data=[0] * 4)), "input 'x': there is no datatype 'FP31'"),
        (
            head(tensor(datatype="FP16", data=[0] * 4)),
            "input 'x': FP16 has no JSON form; send it as binary data",
        ),
        (head(tensor()), "input 'x': there is neither data nor binary_data_size"),
        (head(binary(0, data=[0])), "input 'x': there is both data and binary_data_size"),
        (
            head(tensor(shape=[1, 5], data=[0] * 5)),
            "input 'x': the shape is [1, 5]; the model takes [-1, 4] (-1 is any size)",
        ),
        (
            head(tensor(shape=[4], data=[0] * 4)),
            "input 'x': the shape is [4]; the model takes [-1, 4] (-1 is any size)",
        ),
        (
            head(tensor(shape=[0, 4], data=[])),
            "input 'x': the shape is [0, 4]: there is nothing to answer",
        ),
        (
            head(tensor(shape=[requests.MAX_ROWS + 1, 4], data=[])),
            "input 'x': 65537 rows; at most 65536 are answered at once",
        ),
        (
            head(tensor(data=[0] * 3)),
            "input 'x': data does not hold the 4 elements of shape [1, 4]",
        ),
        (
            head(tensor(data=[[0, 0], [0, 0]])),
            "input 'x': data does not hold the 4 elements of shape [1, 4]",
        ),
        (head(tensor(data="0,0,0,0[")), "input 'x': data is no JSON array"),
        (
            head(tensor(data=["0", True, 0, 0])),
            "input 'x': data of FP32 holds elements of another kind: bool, str",
        ),
        (
            head(tensor(data=[0] * 4), outputs=[{"name": "q"}]),
            "the model has no output 'q'; it gives 'p', 'label'",
        ),
        (
            head(tensor(data=[0] * 4), outputs=[{"name": "p"}, {"name": "p"}]),
            "output 'p' is asked for twice",
        ),
        (
            head(tensor(data=[0] * 4), parameters={"binary_data_output": 1}),
            "binary_data_output is '1'; expected true or false",
        ),
        (
            head(tensor(data=[0] * 4), parameters={"sequence_id": 3}),
            "this server does not offer what 'sequence_id' asks for",
        ),
        (
            head(tensor(parameters={"shared_memory_region": "r"})),
            "this server does not offer what 'shared_memory_region' asks for",
        ),
        (
            head(tensor(data=[0] * 4), outputs=[{"name": "p", "parameters": CLASSES}]),
            "this server does not offer what 'classification' asks for",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said(body: bytes, text: str) -> None:
    assert refusal(body).startswith(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (15, "input 'x': 15 bytes of binary data; FP32 of shape [1, 4] takes 16"),
        (17, "input 'x': binary_data_size is 17; 16 bytes of binary data are left"),
        (-1, "input 'x': binary_data_size is -1; 16 bytes of binary data are left"),
        (True, "input 'x': binary_data_size is True; 16 bytes of binary data are left"),
    ],
)
def test_a_wrong_size_of_binary_data_is_refused(size: int, text: str) -> None:
    start = head(binary(size))
    assert refusal(start + bytes(16), len(start)) == text


def test_binary_data_of_no_input_is_refused() -> None:
    start = head(binary(16))
    assert refusal(start + bytes(17), len(start)) == "1 bytes of binary data belong to no input"
    assert refusal(start, len(start) + 1) == (
        f"Inference-Header-Content-Length is {len(start) + 1}; the body has {len(start)} bytes"
    )


def test_inputs_of_one_request_have_one_batch() -> None:
    body = head(tensor("n", "FP64", (2, 2), data=[0] * 4), tensor("s", "BYTES", (1, 1), data=["a"]))
    assert refusal(body, None, TWO) == (
        "the inputs do not have the same number of rows: {'n': 2, 's': 1}"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes of binary data cannot hold 1 elements of BYTES"),
        (b"\x05\0\0\0abcd", "element 0 of BYTES goes beyond the binary data"),
        (b"\xff\xff\xff\xff", "element 0 of BYTES goes beyond the binary data"),
        (b"\x01\0\0\0ab", "1 bytes of binary data follow the last element of BYTES"),
        (b"\x01\0\0\0\xff", "an element of BYTES is not text in UTF-8: invalid start byte"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        datatypes.from_raw("BYTES", [1], memoryview(data))


def test_a_bool_is_0_or_1() -> None:
    assert datatypes.from_raw("BOOL", [2], memoryview(b"\0\1")).tolist() == [False, True]
    with pytest.raises(RequestError, match="neither 0 nor 1"):
        datatypes.from_raw("BOOL", [2], memoryview(b"\0\2"))


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("UINT8", -1), ("INT64", 2**63), ("INT8", -129)]
)
def test_a_number_out_of_range_is_refused(datatype: str, value: int) -> None:
    with pytest.raises(RequestError, match=f"a number does not fit {datatype}"):
        datatypes.from_json(datatype, [1], Raw(str([value]).encode()))


def test_a_raw_body_is_the_one_input_and_its_length_says_how_many_rows() -> None:
    data = np.arange(8, dtype="<f4").tobytes()
    request = requests.parse(data, 0, ONE)
    assert request.tensors["x"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert request.outputs == {"p": True, "label": True}
    assert refusal(data[:-1], 0) == "the body has 31 bytes; input 'x' takes 16 for each row"
    assert refusal(b"", 0) == "the body has 0 bytes; input 'x' takes 16 for each row"
    assert refusal(data, 0, TWO) == (
        "a body without a JSON head is for models of one input; this one takes 'n', 's'"
    )
    sound = bytes(16)
    assert requests.parse(sound, 0, UNBATCHED).tensors["sound"].shape == (1, 8)
    assert refusal(sound * 2, 0, UNBATCHED) == "the body has 32 bytes; input 'sound' takes 16"


def test_a_raw_body_for_a_model_of_text_is_one_text() -> None:
    text = Signature("score", [Tensor("t", "string", [None, 1])], ONE.outputs, "p")
    assert requests.parse("grün".encode(), 0, text).tensors["t"].tolist() == [["grün"]]
    wide = Signature("score", [Tensor("t", "string", [None, 2])], ONE.outputs, "p")
    assert (
        refusal(b"a", 0, wide) == "a body without a JSON head holds one text; the model takes more"
    )


def test_json_beyond_its_bound_is_refused_unread() -> None:
    with pytest.raises(RequestError, match="send tensors of that size as binary data") as error:
        requests.parse(bytes(requests.MAX_JSON_BYTES + 1), None, ONE)
    assert error.value.status == 413
    assert "no inference request" in refusal(bytes(requests.MAX_JSON_BYTES))


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 400_000 + b"[]]",
        b"[" + b"0," * 600_000 + b"0]",
        b'["' + b"," * 3 + b"[" * 1_000_000 + b'"]',
    ],
    ids=["lists", "numbers", "text"],
)
def test_data_that_is_not_of_its_shape_is_refused_before_it_costs_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            datatypes.from_json("FP32", [1, 4], Raw(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data)


def test_a_stated_size_costs_nothing_by_itself() -> None:
    start = head(
        tensor("n", "FP64", (65536, 2), parameters={"binary_data_size": 2**40}), tensor("s")
    )
    tracemalloc.start()
    try:
        refusal(start, len(start), TWO)
        with pytest.raises(RequestError):
            datatypes.from_raw("BYTES", [2**50], memoryview(b"1234"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


SIGNATURES = st.sampled_from([ONE, TWO, UNBATCHED])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters",
                         "binary_data_size", "id", "binary_data"]),
        inner,
        max_size=5,
    ),
    max_leaves=30,
)  # fmt: skip
_INPUTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "n", "s", "sound"]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3),
        "datatype": st.sampled_from(["FP32", "FP64", "BF16", "BYTES", "BOOL", "INT16", "?"]),
    },
    optional={
        "data": _JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 64)}),
    },
)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200), head_bytes=st.none() | st.integers(0, 250), to=SIGNATURES)
def test_no_bytes_make_the_parser_fail(body: bytes, head_bytes: int | None, to: Signature) -> None:
    answered_or_refused(lambda: requests.parse(body, head_bytes, to))


@settings(max_examples=500, deadline=None)
@given(
    inputs=st.lists(_INPUTS, max_size=3) | _JSON,
    rest=st.binary(max_size=80),
    more=st.dictionaries(st.sampled_from(["outputs", "id", "parameters"]), _JSON, max_size=2),
    to=SIGNATURES,
)
def test_no_request_makes_the_parser_fail(
    inputs: Any, rest: bytes, more: dict[str, Any], to: Signature
) -> None:
    start = json.dumps({"inputs": inputs, **more}).encode()
    for body, head_bytes in ((start, None), (start + rest, len(start))):
        request = answered_or_refused(partial(requests.parse, body, head_bytes, to))
        assert request is None or set(request.tensors) == {part.name for part in to.inputs}


# -- tensors -----------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
     "float16", "float32", "float64"]
)  # fmt: skip


@given(st.data())
def test_every_datatype_comes_back_the_same(data: st.DataObject) -> None:
    dtype = data.draw(NUMBERS)
    array = data.draw(arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=4)))
    datatype = datatypes.datatype_of(dtype)
    raw = memoryview(bytes(datatypes.to_raw(array)))
    assert len(raw) == array.size * datatypes.size_bytes(datatype)
    np.testing.assert_array_equal(datatypes.from_raw(datatype, array.shape, raw), array)
    if dtype == "float16":
        with pytest.raises(RequestError, match="no JSON form"):
            datatypes.to_json(array)
        return
    if array.dtype.kind == "f":
        array[~np.isfinite(array)] = math.nan
    flat = Raw(replies.json_reply(datatypes.to_json(array)).body)
    np.testing.assert_array_equal(datatypes.from_json(datatype, array.shape, flat), array)
    nested = Raw(json.dumps(array.tolist()).replace("NaN", "null").encode())
    np.testing.assert_array_equal(datatypes.from_json(datatype, array.shape, nested), array)


@given(st.lists(st.text(), min_size=1, max_size=9))
def test_texts_come_back_the_same(texts: list[str]) -> None:
    array = np.array(texts, object)
    try:
        raw = bytes(datatypes.to_raw(array))
    except UnicodeEncodeError:
        return  # half of a surrogate pair is no text that a model could give
    shape = [len(texts)]
    assert datatypes.from_raw("BYTES", shape, memoryview(raw)).tolist() == texts
    flat = Raw(replies.json_reply(datatypes.to_json(array)).body)
    assert datatypes.from_json("BYTES", shape, flat).tolist() == texts


def test_big_endian_and_strided_arrays_leave_as_the_protocol_wants() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert bytes(datatypes.to_raw(array)) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


# -- replies -----------------------------------------------------------------------------------

SLOT = Slot("colours", "v1", 3, "tflite-int8", "ab" * 32)


def inference(**outputs: Any) -> Inference:
    return Inference([5, 6], "colours", "v1", 3, ["red", "blue"], outputs)


def test_a_json_reply_has_everything_in_it() -> None:
    request = requests.InferRequest("q", {}, {"p": False})
    scores = np.array([[0.5, 0.25, math.nan]], np.float32)
    reply = replies.infer_reply(request, inference(p=scores))
    assert reply.headers == {"content-type": "application/json"}
    assert json.loads(reply.body) == {
        "model_name": "colours",
        "model_version": "3",
        "id": "q",
        "parameters": {
            "version": "v1",
            "release": 3,
            "prediction_ids": [5, 6],
            "labels": ["red", "blue"],
        },
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.25, None]}],
    }


def test_a_binary_reply_has_the_tensors_behind_its_head() -> None:
    request = requests.InferRequest("", {}, {"p": True, "label": True})
    labels = np.array(["red"], object)
    reply = replies.infer_reply(request, inference(p=np.ones((1, 3), np.float16), label=labels))
    size = int(reply.headers["inference-header-content-length"])
    described = json.loads(reply.body[:size])
    assert "id" not in described
    assert described["outputs"] == [
        {"name": "p", "datatype": "FP16", "shape": [1, 3], "parameters": {"binary_data_size": 6}},
        {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
    ]
    assert reply.body[size:] == np.ones(3, "<f2").tobytes() + b"\x03\0\0\0red"


def test_an_fp16_output_is_binary_or_refused() -> None:
    request = requests.InferRequest("", {}, {"p": False})
    with pytest.raises(RequestError, match="output 'p': an FP16 output has no JSON form"):
        replies.infer_reply(request, inference(p=np.ones((1, 3), np.float16)))


def test_a_model_is_described_by_its_manifest() -> None:
    assert json.loads(replies.model_metadata(SLOT, ONE).body) == {
        "name": "colours",
        "versions": ["3"],
        "platform": "tensorflowlite_tflite",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


# -- encodings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", " GZIP "])
@given(body=st.binary(max_size=500))
def test_a_packed_body_comes_back_at_exactly_its_limit(encoding: str, body: bytes) -> None:
    packed = encodings.pack(body, encoding.strip().lower())
    assert encodings.unpack(packed, encoding, len(body)) == body
    if body:
        with pytest.raises(RequestError, match="larger than") as error:
            encodings.unpack(packed, encoding, len(body) - 1)
        assert error.value.status == 413


def test_a_bomb_is_refused_at_its_limit() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="larger than 1000 bytes"):
            encodings.unpack(bomb, "gzip", 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(bomb)


@settings(deadline=None)
@given(body=st.binary(max_size=100), encoding=st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_make_unpacking_fail(body: bytes, encoding: str) -> None:
    answered_or_refused(lambda: encodings.unpack(body, encoding, 1000))


def test_damaged_and_unknown_encodings_are_refused() -> None:
    whole = zlib.compress(b"row")
    for body in (whole[:-1], whole + b"x", b"row", b""):
        with pytest.raises(RequestError, match="deflate data"):
            encodings.unpack(body, "deflate", 100)
    with pytest.raises(RequestError, match="'br' is not known; use gzip, deflate") as error:
        encodings.unpack(b"", "br", 100)
    assert error.value.status == 415
    assert encodings.unpack(b"row", "identity", 1) == b"row"


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0", None),
        ("br, GZIP;q=0.1", "gzip"),
        ("gzip;q=x", None),
    ],
)
def test_a_reply_is_packed_as_the_client_likes_best(accepted: str, chosen: str | None) -> None:
    assert encodings.choose(accepted) == chosen


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [
        ("127.0.0.1:8500", "127.0.0.1:8500"),
        ("localhost:0", "127.0.0.1:0"),
        ("[::1]:65535", "[::1]:65535"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_an_address_of_this_machine_is_read(text: str, shown_as: str) -> None:
    assert str(address.parse(text)) == shown_as


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0:8500", "can be reached from other machines, and the protocol asks for no passw"),
        ("[::]:8500", "can be reached from other machines"),
        ("192.168.0.7:8500", "can be reached from other machines"),
        ("example.org:8500", "names no address of this machine"),
        (":8500", "names no address of this machine"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:65536", "is no address"),
        ("127.0.0.1:-1", "is no address"),
        ("::1:80", "is no address"),
        ("[127.0.0.1]:80", "is no address"),
        ("unix:relative", "must be absolute"),
        ("unix:/" + "a" * 107, "at most 107 bytes"),
    ],
)
def test_any_other_address_is_refused_with_its_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        address.parse(text)
    with pytest.raises(ValueError, match=why):
        Server(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8500", True),
        ("127.8.9.1:80", True),
        ("[::1]", True),
        ("[::1]:8500", True),
        ("LocalHost:1", True),
        ("localhost.", True),
        ("", False),
        ("evil.example:8500", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.0.7", False),
        ("[fe80::1]:80", False),
        ("null", False),
    ],
)
def test_only_names_of_this_machine_are_local(host: str, local: bool) -> None:
    assert is_local_name(host) is local


@given(st.text())
def test_no_host_makes_the_check_fail(host: str) -> None:
    is_local_name(host)


def test_what_a_caller_sent_is_quoted_shortly() -> None:
    assert shown("a" * 80) == repr("a" * 80)
    assert shown("a" * 81) == repr("a" * 80 + "…")


@pytest.mark.parametrize(
    ("topics", "why"),
    [
        ([LocalTopic("m", "in/+", "out")], "topic 'in/\\+': expected a name without"),
        ([LocalTopic("m", "in", "")], "topic '': expected a name"),
        ([LocalTopic("m", "in", "in")], "would answer its answers"),
        ([LocalTopic("m", "a/error", "a")], "would answer its answers"),
        ([LocalTopic("m", "a", "b"), LocalTopic("n", "b", "c")], "would answer its answers"),
        ([LocalTopic("m", "a", "b"), LocalTopic("n", "a", "c")], "the same input topic"),
    ],
)
def test_local_topics_that_cannot_work_are_refused(topics: list[LocalTopic], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LocalBroker(topics=topics)


def test_there_is_no_server_and_no_local_broker_by_default() -> None:
    assert (Config().server.listen, Config().broker.topics) == ("", [])
    assert Tcp("::1", 1) == address.parse("[::1]:1")
