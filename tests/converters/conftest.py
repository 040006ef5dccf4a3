"""Bundled data sets as files, and where shared models lie."""

import os
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    def save(model: object, name: str = "model.joblib") -> str:
        path = tmp_path / name
        joblib.dump(model, path)
        return str(path)

    return save


@pytest.fixture
def save_table(tmp_path: Path) -> SaveTable:
    def save(frame: pd.DataFrame, name: str = "sample.csv") -> str:
        path = tmp_path / name
        frame.to_csv(path, index=False)
        return str(path)

    return save


@pytest.fixture
def factory() -> pd.DataFrame:
    """Small table with text and missing cells: does a machine need service?"""
    rng = np.random.default_rng(7)
    n = 240
    frame = pd.DataFrame(
        {
            "temperature": rng.normal(60, 12, n).round(2),
            "rpm": rng.integers(800, 3000, n),
            "site": rng.choice(["north", "south", "harbour"], n),
            "maker": rng.choice(["ACME", "Borg"], n),
        }
    )
    heat: NDArray[np.bool_] = (
        frame["temperature"] + 8 * (frame["site"] == "north") > 64
    ).to_numpy()
    frame["service"] = np.where(heat, "yes", "no")
    frame.loc[5, "temperature"] = np.nan
    frame.loc[9, "site"] = np.nan
    return frame


@pytest.fixture(scope="session")
def shared_models() -> Path:
    folder = Path(os.environ.get("EDGEFLEET_DATA", Path(__file__).parents[2].parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(
            f"no shared models in {folder}; point EDGEFLEET_DATA at the folder that has them"
        )
    return folder / "models"
