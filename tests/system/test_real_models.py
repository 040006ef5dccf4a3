"""Every real model through a whole agent: real trial, real verification, real serving.

Those that must run are confirmed, answer, and reach the accuracy that is stated for them; those
that must be refused are, with a reason that names what is wrong, and cost the device nothing.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgefleet_protocol.messages import Result
from tests.system import real_models
from tests.system.local_agent import LocalAgent
from tests.system.real_models import REFUSED, RUNNING, SERVING, Real

SUFFIXES = {".onnx", ".tflite", ".h5", ".hdf5"}


@pytest.fixture(scope="module")
def folder() -> Path:
    data = Path(os.environ.get("EDGEFLEET_DATA", Path(__file__).parents[2].parent / "shared"))
    if not (data / "models").is_dir():
        pytest.skip(f"no real models in {data}; point EDGEFLEET_DATA at the folder that has them")
    return data / "models"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAgent]:
    made = LocalAgent(tmp_path_factory.mktemp("real-models"))
    made.start()
    yield made
    made.stop()


def ended(device: LocalAgent, model: str, release: int) -> Result:
    """Wait for the result of a release."""

    def results() -> list[Result]:
        return [
            result
            for result in device.hub.bodies(Result)
            if (result.model, result.release) == (model, release)
        ]

    device.until(results)
    return results()[0]


def test_every_model_of_the_folder_is_described(folder: Path) -> None:
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in SUFFIXES}
    assert held == {model.path for model in RUNNING} | set(REFUSED)


@pytest.mark.parametrize("model", RUNNING, ids=lambda model: model.name)
def test_a_model_that_must_run_is_confirmed_and_as_good_as_stated(
    device: LocalAgent, folder: Path, model: Real
) -> None:
    device.order(model.bundle(folder), 1)
    result = ended(device, model.name, 1)
    assert (result.outcome, result.reason) == ("confirmed", "")
    model.evaluate(device.agent.model(model.name), folder)


def test_a_model_that_keeps_a_state_inside_starts_afresh_after_its_golden_vectors(
    device: LocalAgent, folder: Path
) -> None:
    """Whatever ran before it served, the first answers are those of a model just opened."""
    nabu = next(model for model in RUNNING if "okay_nabu" in model.path)
    fresh = replace(nabu, version="fresh")
    device.order(fresh.bundle(folder), 1)
    assert ended(device, fresh.name, 1).outcome == "confirmed"
    frames = real_models.noise()
    serving = device.agent.model(fresh.name)
    answers = [serving.infer({"input_audio": frame}).outputs["dense"].item() for frame in frames]
    assert answers == real_models.streamed(folder / nabu.path, frames)
    assert len(set(answers)) > 1


@pytest.fixture(scope="module")
def serving(device: LocalAgent, folder: Path) -> LocalAgent:
    device.order(SERVING.bundle(folder), 1)
    assert ended(device, SERVING.name, 1).outcome == "confirmed"
    return device


@pytest.mark.parametrize(("number", "path"), [*enumerate(REFUSED, start=2)], ids=list(REFUSED))
def test_a_model_that_must_be_refused_is_and_its_place_goes_on_serving(
    serving: LocalAgent, folder: Path, number: int, path: str
) -> None:
    serving.order(real_models.refused_bundle(folder, path, f"v{number}"), number)
    result = ended(serving, SERVING.name, number)
    assert result.outcome == "rejected"
    assert REFUSED[path] in result.reason
    row = real_models.keypoints(folder)[0][0]
    assert serving.agent.model(SERVING.name).predict(row).release == 1
