"""A whole agent in this process with a hub double in memory, to test what stands beside it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgefleet_agent.agent import Agent
from edgefleet_agent.config import Config
from edgefleet_agent.testing import Bundle, HubDouble, MemoryLink, make_bundle
from edgefleet_protocol import golden, manifest, sketch
from edgefleet_protocol.messages import Result
from edgefleet_protocol.trust import DirectorTarget

MODELS = Path(__file__).parents[1] / "agent" / "models"
DEADLINE_S = 60.0
WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
BIAS = np.array([0.1, 0.0, -0.1])
CLASSES = ["red", "green", "blue"]
WORDS = ["cat", "dog", "grün"]


def right_scores(rows: np.ndarray) -> np.ndarray:
    """Return what the classifier in the agent's test models gives."""
    z = np.exp(np.asarray(rows, np.float64) @ WEIGHTS + BIAS)
    return (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


class LocalAgent:
    """The agent, its link and its hub."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.hub = HubDouble()
        self.hub.identity_into(folder / "store")
        self.link = MemoryLink()
        self.agent = Agent(
            Config(store=str(folder / "store"), board="generic-x86_64", **config), link=self.link
        )
        self._orders: dict[tuple[str, str], DirectorTarget] = {}

    def start(self) -> None:
        self.agent.start()
        self.link.connect()

    def stop(self) -> None:
        self.agent.stop()

    def order(self, bundle: Bundle, release: int, **changes: Any) -> None:
        """Order a release beside those of other models and roles."""
        target = self.hub.release(bundle, release, **changes)
        lane = "primary" if target.role == "primary" else "challenger"
        self._orders[target.model, lane] = target
        self.hub.send_all(self.link, *self._orders.values())

    def until(self, happened: Callable[[], Any]) -> None:
        """Let agent and hub talk until something has happened."""
        deadline = time.monotonic() + DEADLINE_S
        while not happened():
            assert time.monotonic() < deadline, "nothing happened in time"
            self.hub.answer(self.link)
            time.sleep(0.005)

    def until_confirmed(self, model: str, release: int) -> None:
        def confirmed() -> bool:
            done = [
                result.outcome
                for result in self.hub.bodies(Result)
                if (result.model, result.release) == (model, release)
            ]
            assert not done or [str(outcome) for outcome in done] == ["confirmed"]
            return bool(done)

        self.until(confirmed)


def colours(name: str, **changes: Any) -> Bundle:
    """Return a bundle of one of the agent's test models."""
    runtime = "litert" if name.endswith(".tflite") else "onnxruntime"
    return make_bundle((MODELS / name).read_bytes(), right_scores, runtime=runtime, **changes)


def words() -> Bundle:
    """Return a bundle of a model that takes a word, and gives its number and the word itself."""
    rows = 30
    chosen = [WORDS[index % len(WORDS)] for index in range(rows)]
    numbers = np.array([[float(index % len(WORDS))] for index in range(rows)], np.float32)
    text = manifest.Tensor("word", "string", [None, 1], ["word"])
    signature = manifest.Signature(
        "regression",
        [text],
        [
            manifest.Tensor("number", "float32", [None, 1]),
            manifest.Tensor("same", "string", [None, 1]),
        ],
        "number",
    )
    vectors = golden.GoldenVectors(
        ["word"],
        rows,
        np.full((rows, 1), np.nan).tobytes(),
        numbers.tobytes(),
        1,
        atol=1e-6,
        text={"word": chosen},
    )
    feature = sketch.Feature("word", "categorical", vocabulary=WORDS)
    counted = numbers.astype(np.float64)
    profile = sketch.ReferenceProfile(
        rows,
        [feature],
        sketch.pack_counts(sketch.count_rows([feature], counted), [feature]),
        sketch.pack_moments(sketch.moments_of(counted)),
    )
    files, blobs = [], {}
    for role, data in (
        ("model", _words_model()),
        ("reference", sketch.encode_profile(profile)),
        ("golden", golden.encode(vectors)),
    ):
        file, blob = manifest.describe_file(role, data)
        files.append(file)
        blobs[file.transfer.digest] = blob
    made = manifest.Manifest(
        "words",
        "v1",
        "onnx-fp32",
        files,
        signature,
        manifest.Needs("onnxruntime", "1.0"),
        manifest.Measured(0.0, 1.0, 1.0),
        manifest.Lineage(),
    )
    return Bundle(made, manifest.encode(made), blobs)


def _words_model() -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node(
                "LabelEncoder",
                ["word"],
                ["number"],
                domain="ai.onnx.ml",
                keys_strings=WORDS,
                values_floats=[0.0, 1.0, 2.0],
            ),
            helper.make_node("Identity", ["word"], ["same"]),
        ],
        "words",
        [helper.make_tensor_value_info("word", TensorProto.STRING, ["n", 1])],
        [
            helper.make_tensor_value_info("number", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("same", TensorProto.STRING, ["n", 1]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
