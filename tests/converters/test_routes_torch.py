"""PyTorch graphs. Without PyTorch, which comes from the user, the refusal alone is tested."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgefleet_converters import opening, runners, sources
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.opening import Prepared

ROWS = np.random.default_rng(0).normal(size=(7, 1, 8, 8)).astype(np.float32)
HAS_TORCH = importlib.util.find_spec("torch") is not None
# PyTorch calls tracing deprecated; people have such files.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, x=ROWS, label=np.arange(7) % 3)
    return path


@pytest.fixture
def network() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(), nn.Linear(64, 3), nn.Softmax(1),
    ).eval()  # fmt: skip


def prepared(model: Path, sample: Path) -> Prepared:
    return opening.prepare(ConversionRequest(str(model), str(sample), "label"))


def check(found: Prepared, network: Any) -> None:
    """Compare with PyTorch what the route says of the trial rows, and what ONNX gives for them."""
    import torch

    model = found.opened.bases["onnx"]
    tensors = found.trial.bind(model.signature)
    with torch.no_grad():
        wanted = network(torch.from_numpy(next(iter(tensors.values())))).numpy()
    np.testing.assert_allclose(found.truth.original, wanted, atol=1e-5)
    got = runners.scores(runners.OnnxRunner(model.data, model.signature), tensors)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert (found.opened.task, len(found.opened.classes)) == ("classification", 3)


def batch(found: Prepared) -> int | str:
    (given,) = onnx.load_model_from_string(found.opened.bases["onnx"].data).graph.input
    first = given.type.tensor_type.shape.dim[0]
    return first.dim_param or first.dim_value


@needs_torch
@pytest.mark.parametrize("rows", [1, None])
def test_an_exported_program_gives_its_answers(
    network: Any, sample: Path, tmp_path: Path, rows: int | None
) -> None:
    import torch

    path = tmp_path / "network.pt2"
    example = torch.from_numpy(ROWS[: rows or 2])
    free = None if rows else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=free), path)
    found = prepared(path, sample)
    check(found, network)
    assert batch(found) == (rows or "batch")


@needs_torch
def test_torchscript_gives_its_answers_for_any_batch(
    network: Any, sample: Path, tmp_path: Path
) -> None:
    import torch

    path = tmp_path / "network.pt"
    torch.jit.trace(network, torch.from_numpy(ROWS[:1])).save(path)
    found = prepared(path, sample)
    check(found, network)
    assert batch(found) == "batch"


@needs_torch
@pytest.mark.parametrize("whole", [True, False], ids=["module", "weights"])
def test_what_only_code_could_load_is_refused(network: Any, tmp_path: Path, whole: bool) -> None:
    import torch

    path = tmp_path / "network.pth"
    torch.save(network if whole else network.state_dict(), path)
    with pytest.raises((BadInputError, UnsupportedError), match=r"only torch\.load reads"):
        sources.recognise(str(path))


@needs_torch
def test_a_damaged_program_is_refused(network: Any, sample: Path, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network, (torch.from_numpy(ROWS[:1]),)), path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInputError, match=r"network\.pt2: damaged, or cut off"):
        prepared(path, sample)


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed")
def test_without_pytorch_the_way_out_is_named(sample: Path, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "network.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("network/constants.pkl", b"\x80\x02).")
        archive.writestr("network/code/__torch__.py", b"")
    with pytest.raises(UnsupportedError, match=r"needs PyTorch: install .* torch\.onnx\.export"):
        prepared(path, sample)
