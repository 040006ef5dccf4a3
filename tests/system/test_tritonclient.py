"""The agent's server driven by NVIDIA's own client for the protocol, which knows nothing of it."""

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgefleet_agent import agent as agent_module
from edgefleet_agent.agent import build_engine
from edgefleet_agent.config import Server
from edgefleet_agent.errors import ServerError
from edgefleet_agent.server.address import Tcp
from edgefleet_agent.updating.trial import Verdict
from tests.system.local_agent import CLASSES, LocalAgent, colours, right_scores, words

ROWS = np.array([[1, 0, 0, 0], [0, 0.5, 0, -1], [0, 0, 3, 0]], np.float32)
SWITCHES = 40
CALLERS = 4


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAgent]:
    """An agent with a server that has put two models through the whole update."""
    made = LocalAgent(tmp_path_factory.mktemp("device"), server=Server("127.0.0.1:0"))
    made.start()
    made.order(colours("classifier.onnx"), 3)
    made.order(words(), 1)
    made.until_confirmed("colours", 3)
    made.until_confirmed("words", 1)
    yield made
    made.stop()


@pytest.fixture
def client(device: LocalAgent) -> Iterator[triton.InferenceServerClient]:
    with new_client(device) as made:
        yield made


def new_client(device: LocalAgent) -> triton.InferenceServerClient:
    assert device.agent.server
    return triton.InferenceServerClient(str(device.agent.server.address))


def tensor(
    values: np.ndarray, name: str = "x", datatype: str = "FP32", *, binary: bool = True
) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_a_client_sees_what_serves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours")
    assert client.is_model_ready("colours", "3")
    assert not client.is_model_ready("colours", "4")
    assert not client.is_model_ready("shapes")
    server = client.get_server_metadata()
    assert (server["name"], server["extensions"]) == ("edgefleet", ["binary_tensor_data"])
    assert client.get_model_metadata("colours") == {
        "name": "colours",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_tensors_go_as_bytes_and_as_json(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    outputs = (
        None
        if binary_out is None
        else [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    )
    result = client.infer(
        "colours", [tensor(ROWS, binary=binary_in)], outputs=outputs, request_id="q-1"
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), right_scores(ROWS), atol=1e-6)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "q-1",
        "colours",
        "3",
    )
    assert ("data" in result.get_output("probabilities")) is (binary_out is False)


def test_an_answer_names_its_labels_and_its_predictions_for_feedback(
    client: triton.InferenceServerClient, device: LocalAgent
) -> None:
    result = client.infer("colours", [tensor(ROWS)], model_version="3")
    told = result.get_response()["parameters"]
    expected = [CLASSES[index] for index in right_scores(ROWS).argmax(axis=1)]
    assert (told["labels"], told["release"], told["version"]) == (expected, 3, "v1")
    known = device.agent.model("colours").feedback
    assert [known(number, "red") for number in told["prediction_ids"]] == [True] * 3
    assert not known(max(told["prediction_ids"]) + 1000, "red")


@pytest.mark.parametrize("binary", [True, False])
def test_text_goes_as_bytes_and_as_json(client: triton.InferenceServerClient, binary: bool) -> None:
    given = np.array([["dog"], ["grün"], ["cat"]], object)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("same", "number")]
    sent = tensor(given, "word", "BYTES", binary=binary)
    result = client.infer("words", [sent], outputs=outputs)
    assert result.as_numpy("number").tolist() == [[1.0], [2.0], [0.0]]
    same = result.as_numpy("same").ravel().tolist()
    assert [text.decode() if isinstance(text, bytes) else text for text in same] == [
        "dog",
        "grün",
        "cat",
    ]


def test_only_the_outputs_that_were_asked_for_come(client: triton.InferenceServerClient) -> None:
    sent = tensor(np.array([["dog"]], object), "word", "BYTES")
    result = client.infer("words", [sent], outputs=[triton.InferRequestedOutput("same")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["same"]
    assert result.as_numpy("number") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_both_ways_may_be_packed(
    client: triton.InferenceServerClient, algorithm: str, binary: bool
) -> None:
    many = np.resize(ROWS, (500, 4))
    result = client.infer(
        "colours",
        [tensor(many, binary=binary)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), right_scores(many), atol=1e-6)


def test_the_documented_example_is_answered_as_it_says(device: LocalAgent) -> None:
    text = (Path(__file__).parents[2] / "docs" / "inference-server.md").read_text("utf-8")
    body = text.partition("/infer -d '")[2].partition("'")[0]
    documented = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert device.agent.server
    connection = http.client.HTTPConnection(str(device.agent.server.address), timeout=30.0)
    connection.request("POST", "/v2/models/colours/infer", body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    (number,) = answer["parameters"].pop("prediction_ids")
    assert isinstance(number, int)
    del documented["parameters"]["prediction_ids"]
    for output in (answer["outputs"][0], documented["outputs"][0]):
        output["data"] = [round(value, 4) for value in output["data"]]
    assert answer == documented


def wrong(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        call()
    return error.value.status(), error.value.message()


def test_errors_arrive_as_the_clients_own(client: triton.InferenceServerClient) -> None:
    infer = client.infer
    assert wrong(lambda: infer("shapes", [tensor(ROWS)])) == (
        "404",
        "this device serves no model 'shapes'; it serves: colours, words",
    )
    assert wrong(lambda: infer("colours", [tensor(ROWS)], model_version="2")) == (
        "404",
        "model colours has no version '2' here; 3 serves",
    )
    assert wrong(lambda: infer("colours", [tensor(ROWS[:, :3])])) == (
        "400",
        "input 'x': the shape is [3, 3]; the model takes [-1, 4] (-1 is any size)",
    )
    assert wrong(lambda: infer("colours", [tensor(ROWS.astype("f8"), datatype="FP64")])) == (
        "400",
        "input 'x': the datatype is FP64; the model takes FP32",
    )
    assert wrong(lambda: infer("colours", [tensor(ROWS, "y")])) == (
        "400",
        "the request has the inputs 'y'; the model takes 'x'",
    )
    asked = [triton.InferRequestedOutput("logits")]
    assert wrong(lambda: infer("colours", [tensor(ROWS)], outputs=asked)) == (
        "400",
        "the model has no output 'logits'; it gives 'probabilities'",
    )
    assert wrong(lambda: infer("colours", [tensor(ROWS)], sequence_id=1)) == (
        "400",
        "this server does not offer what 'sequence_id' asks for",
    )
    assert wrong(lambda: client.get_model_config("colours")) == (
        "404",
        "a model has nothing at 'config'",
    )
    assert client.infer("colours", [tensor(ROWS)])


def test_a_calls_own_asynchronous_form_works(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer("colours", [tensor(ROWS)]) for _ in range(5)]
    for call in pending:
        assert call.get_result().as_numpy("probabilities").shape == (3, 3)


@pytest.fixture
def switching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAgent]:
    """An agent that switches quickly: everything is real but the trial's child process."""
    quick = partial(build_engine, surroundings={"try_candidate": lambda *_: Verdict([])})
    monkeypatch.setattr(agent_module, "build_engine", quick)
    made = LocalAgent(tmp_path, server=Server("127.0.0.1:0"))
    made.start()
    yield made
    made.stop()


class Caller(threading.Thread):
    """Asks as fast as it can, on one connection of its own, now in binary and now in JSON."""

    def __init__(self, device: LocalAgent, seed: int) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.failures: list[str] = []
        self.versions: list[str] = []
        self.enough = threading.Event()
        self._device = device
        self._random = np.random.default_rng(seed)

    def run(self) -> None:
        with new_client(self._device) as client:
            while not self.enough.is_set():
                rows = self._random.normal(size=(2, 4)).astype(np.float32)
                try:
                    result = client.infer("colours", [tensor(rows, binary=bool(self.answers % 2))])
                except Exception as error:  # every failure counts, of whatever kind
                    self.failures.append(repr(error))
                    continue
                self._check(rows, result)

    def _check(self, rows: np.ndarray, result: triton.InferResult) -> None:
        version = result.get_response()["model_version"]
        if not np.allclose(result.as_numpy("probabilities"), right_scores(rows), atol=1e-4):
            self.failures.append(f"release {version} gave wrong scores")
        if not self.versions or self.versions[-1] != version:
            self.versions.append(version)
        self.answers += 1


def test_no_request_fails_while_versions_are_switched(switching: LocalAgent) -> None:
    bundles = [
        colours(name, version=f"v{number}")
        for number, name in enumerate(["classifier.onnx", "classifier.tflite"])
    ]
    switching.order(bundles[0], 1)
    switching.until_confirmed("colours", 1)
    callers = [Caller(switching, seed) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    for release in range(2, SWITCHES + 2):
        switching.order(bundles[release % 2], release, confirm_rows=4)
        switching.until_confirmed("colours", release)
    for caller in callers:
        caller.enough.set()
    for caller in callers:
        caller.join(60.0)
        assert not caller.is_alive()
    assert [failure for caller in callers for failure in caller.failures] == []
    assert sum(caller.answers for caller in callers) >= 10 * SWITCHES
    for caller in callers:
        releases = [int(version) for version in caller.versions]
        assert releases == sorted(releases), "an answer came from a release that had been replaced"
    seen = {version for caller in callers for version in caller.versions}
    assert seen == {str(release) for release in range(1, SWITCHES + 2)}


def test_a_split_is_answered_as_it_is_assigned(switching: LocalAgent) -> None:
    switching.order(colours("classifier.onnx"), 1)
    switching.until_confirmed("colours", 1)
    challenger = colours("classifier.tflite", version="v2")
    switching.order(challenger, 2, role="split", share_percent=50)
    model = switching.agent.model("colours")
    switching.until(lambda: model.challenger_slot is not None)
    with new_client(switching) as client:
        assert client.get_model_metadata("colours")["versions"] == ["1"]
        answers = [client.infer("colours", [tensor(ROWS)], model_version="1") for _ in range(60)]
        for answer in answers:
            found = answer.as_numpy("probabilities")
            np.testing.assert_allclose(found, right_scores(ROWS), atol=1e-4)
        told = [answer.get_response() for answer in answers]
        assert {(one["model_version"], one["parameters"]["version"]) for one in told} == {
            ("1", "v1"),
            ("2", "v2"),
        }
        assert all(
            model.feedback(number, "red")
            for one in told
            for number in one["parameters"]["prediction_ids"]
        )


def test_a_unix_socket_serves_the_same(tmp_path: Path) -> None:
    path = tmp_path / "inference.sock"
    made = LocalAgent(tmp_path, server=Server(f"unix:{path}"))
    made.start()
    try:
        made.order(colours("classifier.onnx"), 1)
        made.until_confirmed("colours", 1)
        connection = http.client.HTTPConnection("localhost", timeout=30.0)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        head = {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}]
        }
        connection.request(
            "POST",
            "/v2/models/colours/infer",
            gzip.compress(json.dumps(head).encode()),
            {"Content-Encoding": "gzip"},
        )
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["parameters"]["labels"] == ["red"]
    finally:
        made.stop()
    assert not path.exists()


def test_a_port_in_use_stops_the_start_and_nothing_else(device: LocalAgent, tmp_path: Path) -> None:
    assert device.agent.server
    assert isinstance(device.agent.server.address, Tcp)
    taken = Server(str(device.agent.server.address))
    second = LocalAgent(tmp_path, server=taken)
    with pytest.raises(ServerError, match="another program listens there"):
        second.start()
    third = LocalAgent(tmp_path)  # the store was let go of
    third.start()
    third.stop()
    assert new_client(device).is_server_ready()
