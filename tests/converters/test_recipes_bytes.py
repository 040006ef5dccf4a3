"""Equal input gives equal bytes: each recipe is made in two processes, in another order."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgefleet_converters import opening
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.opening import Prepared
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.recipes.recipe import Recipe, StepCall
from tests.equal_bytes import digests

SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]
# `onnx-int8` times its candidates and says so; this is one of the forms that it chooses among.
STATIC = Recipe("static", "For tests.", "onnx", [StepCall("onnx-int8-static")])
NAMES = ("onnx-fp32", "onnx-fp16", "onnx-fp16-weights", "onnx-int8-dynamic", "onnx-int8-weights")


@pytest.fixture
def prepared(save_model: SaveModel, save_table: SaveTable) -> Prepared:
    X, y = datasets.load_digits(return_X_y=True)
    fitted = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=8, random_state=0))
    with np.errstate(all="ignore"), pytest.warns(match="Maximum iterations"):
        fitted.fit(X, y)
    frame = pd.DataFrame(X[:400], columns=[f"p{i}" for i in range(64)])
    model, sample = save_model(fitted, "m.joblib"), save_table(frame, "s.csv")
    return opening.prepare(ConversionRequest(model, sample))


def test_recipes_give_equal_bytes_in_every_process_and_order(prepared: Prepared) -> None:
    recipes = [*(recipes_of.builtin()[name] for name in NAMES), STATIC]
    first = digests(prepared, recipes)
    assert digests(prepared, recipes[::-1]) == first
    assert len(set(first.values())) == len(recipes)
    assert not any(each.startswith("refused") for each in first.values())
