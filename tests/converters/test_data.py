"""Which rows are learned from and which are held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters import data
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.samples import Samples

SaveTable = Callable[[pd.DataFrame, str], str]


def read(sample: str | Path, **settings: Any) -> data.Data:
    return data.read(ConversionRequest("m.onnx", str(sample), **settings))


def tensors(folder: Path, name: str = "s.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def test_a_quarter_of_the_rows_is_held_out_by_the_seed(save_table: SaveTable) -> None:
    path = save_table(pd.DataFrame({"a": range(40), "y": range(40)}), "s.csv")
    first, again, other = (read(path, label="y", seed=seed) for seed in (1, 1, 2))
    assert (first.training, len(first.trial_rows)) == (30, 10)
    assert first.labels is not None
    assert sorted(first.labels) == list(range(40))
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)
    assert first.samples.table is not None
    assert first.samples.table.names == ["a"]
    assert np.array_equal(first.samples.table.numbers("a"), first.labels)


def test_without_labels_every_row_is_learned_from_and_some_are_compared(
    save_table: SaveTable,
) -> None:
    path = save_table(pd.DataFrame({"a": range(4001)}), "s.csv")
    found = read(path)
    assert (found.training, found.labels) == (4001, None)
    assert len(found.trial_rows) == data.PARITY_ROWS
    assert (found.trial_rows[0], found.trial_rows[-1]) == (0, 4000)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=12),
    seed=st.integers(0, 5),
)
def test_groups_are_held_out_whole(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    total = len(groups)
    part = data.Part(Samples("s", None, {"X": np.arange(total)}), np.zeros(total), groups)
    order, training = data._shuffled(part, seed)
    assert sorted(order) == list(range(total))
    learned, held = set(groups[order[:training]]), set(groups[order[training:]])
    assert learned
    assert held
    assert not learned & held
    # A quarter of the rows at most, but for a first group that is larger than that.
    assert total - training <= total * data.HOLDOUT_SHARE or len(held) == 1


def test_groups_of_tables_and_tensors_are_numbered(save_table: SaveTable, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(8), "who": list("aabbccdd"), "y": range(8)})
    table = read(save_table(frame, "s.csv"), label="y", group="who")
    assert table.samples.table is not None
    assert table.samples.table.names == ["a"]
    file = tensors(
        tmp_path, X=np.arange(8.0)[:, None], label=np.arange(8), group=np.array(list("aabbccdd"))
    )
    found = read(file)
    for each in (table, found):
        assert each.groups is not None
        assert each.training == 6
        assert set(each.groups[:6]) | set(each.groups[6:]) == {0, 1, 2, 3}
        assert len(set(each.groups[6:])) == 1
    assert found.label == "label"


def test_held_out_rows_have_groups_of_their_own(tmp_path: Path) -> None:
    sample = tensors(tmp_path, "s.npz", X=np.ones((2, 3)), label=[0, 1], group=[0, 1])
    held = tensors(tmp_path, "h.npz", X=np.zeros((3, 3)), label=[1, 0, 0], group=[0, 0, 1])
    found = read(sample, holdout_path=str(held))
    assert found.groups is not None
    assert found.groups.tolist() == [0, 1, 2, 2, 3]
    assert (found.training, found.trial_rows.tolist()) == (2, [2, 3, 4])
    ungrouped = tensors(tmp_path, "u.npz", X=np.ones((2, 3)), label=[0, 1])
    assert read(sample, holdout_path=str(ungrouped)).groups is None
    found = read(ungrouped, holdout_path=str(held))
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 1, 2]


def test_what_does_not_go_together_is_refused(tmp_path: Path, save_table: SaveTable) -> None:
    sample = tensors(tmp_path, "s.npz", X=np.ones((2, 3)), label=[0, 1])
    wide = tensors(tmp_path, "w.npz", X=np.ones((2, 4)), label=[0, 1])
    bare = tensors(tmp_path, "b.npz", X=np.ones((2, 3)))
    table = save_table(pd.DataFrame({"a": [1, 2], "label": [0, 1]}), "t.csv")
    one = tensors(tmp_path, "o.npz", X=np.ones((5, 3)), label=[0] * 5, group=[0] * 5)
    with pytest.raises(BadInputError, match=r"has the arrays \{'X': \(4,\)\}"):
        read(sample, holdout_path=str(wide))
    with pytest.raises(BadInputError, match=r"b\.npz: no labels; held-out rows need them"):
        read(sample, holdout_path=str(bare))
    with pytest.raises(BadInputError, match="has the arrays of a table"):
        read(sample, label="label", holdout_path=table)
    with pytest.raises(BadInputError, match="there is one group only"):
        read(one)


def test_text_labels_of_tensors_are_classes(tmp_path: Path) -> None:
    labels = np.array(["yes", "no", "yes", "maybe"])
    found = read(tensors(tmp_path, X=np.ones((4, 1)), label=labels), seed=3)
    taught, held = found.truth("classification", ["no", "yes"], None)
    assert taught is not None
    assert held is not None
    assert (len(taught), len(held)) == (3, 1)
    assert sorted([*taught, *held]) == [-1, 0, 1, 1]
    assert found.truth("score", [], None) == (None, None)
    with pytest.raises(BadInputError, match="expected a number, found"):
        found.truth("score", [], "auc")


def test_a_sample_without_labels_goes_with_held_out_rows_that_have_them(
    tmp_path: Path, save_table: SaveTable
) -> None:
    rows = save_table(pd.DataFrame({"a": range(5)}), "s.csv")
    judged = save_table(pd.DataFrame({"a": [7, 8, 9], "y": ["no", "yes", "no"]}), "h.csv")
    arrays = tensors(tmp_path, "s.npz", X=np.zeros((5, 1)))
    held = tensors(tmp_path, "h.npz", X=np.ones((3, 1)), y=np.array(["no", "yes", "no"]))
    for found in (
        read(rows, label="y", holdout_path=judged),
        read(arrays, label="y", holdout_path=str(held)),
    ):
        assert (found.training, found.trial_rows.tolist()) == (5, [5, 6, 7])
        taught, truth = found.truth("classification", ["no", "yes"], None)
        assert taught is None
        assert truth is not None
        assert truth.tolist() == [0, 1, 0]
    with pytest.raises(BadInputError, match=r"h\.csv: no column 'z'"):
        read(rows, label="z", holdout_path=judged)
    with pytest.raises(BadInputError, match=r"s\.csv: no column 'y'"):
        read(rows, label="y")
    with pytest.raises(BadInputError, match=r"h\.csv: no labels; .* give the name of the label"):
        read(rows, holdout_path=judged)
