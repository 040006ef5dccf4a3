"""What the agent's tests share: the test models, bundles of them, a hub double, and rigs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet_agent.testing import Bundle, HubDouble, Rig, make_bundle
from edgefleet_agent.updating.trial import Verdict

MODELS = Path(__file__).parent / "models"
WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
BIAS = np.array([0.1, 0.0, -0.1])


def right_scores(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """What the classifier in `models/` gives."""
    z = np.exp(rows @ WEIGHTS + BIAS)
    return (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture(scope="session")
def scores() -> Callable[[NDArray[np.float64]], NDArray[np.float32]]:
    return right_scores


@pytest.fixture(scope="session")
def bundle() -> Callable[..., Bundle]:
    """Make a bundle of one of the test models; golden vectors are those of the right one."""

    def make(name: str = "classifier.onnx", **changes: Any) -> Bundle:
        data = changes.pop("data", None) or (MODELS / name).read_bytes()
        if name.endswith(".tflite"):
            changes.setdefault("runtime", "litert")
        return make_bundle(data, changes.pop("scores", right_scores), **changes)

    return make


@pytest.fixture
def hub() -> HubDouble:
    return HubDouble()


@pytest.fixture
def rig(tmp_path: Path, hub: HubDouble) -> Iterator[Callable[..., Rig]]:
    """Open rigs on one store, one after another; trials pass unless a test says otherwise."""
    rigs: list[Rig] = []

    def make(*, real_trial: bool = False, **options: Any) -> Rig:
        around = dict(options.pop("surroundings", {}))
        if not real_trial:
            around.setdefault("try_candidate", lambda request, cancelled: Verdict([]))
        made = Rig(tmp_path / "store", hub, surroundings=around, **options)
        rigs.append(made)
        return made

    yield make
    for made in rigs:
        made.close()
