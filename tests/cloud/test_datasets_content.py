"""Canonical files and splits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_cloud.datasets import content
from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.storage import Store
from edgefleet_converters.tables import Table, read_table

TABLE = Table(
    "door.csv",
    {
        "light": np.array([1.0, np.nan, 3.5]),
        "room": np.array(["a", None, "ü"], object),
        "taken": np.array([0.0, 1.0, 0.0]),
    },
)


def test_a_prepared_dataset_names_columns_kinds_and_label(store: Store) -> None:
    prepared = content.prepare(store, TABLE, "taken")
    assert prepared.columns == [
        {"name": "light", "kind": "numeric"},
        {"name": "room", "kind": "categorical"},
    ]
    assert (prepared.rows, prepared.label) == (3, "taken")


def test_what_is_read_back_is_what_was_prepared(store: Store) -> None:
    read = content.read(store, content.prepare(store, TABLE, "taken").digest)
    assert read.names == ["light", "room", "taken"]
    np.testing.assert_array_equal(read.columns["light"], TABLE.columns["light"])
    assert list(read.columns["room"]) == ["a", None, "ü"]


def test_equal_tables_have_equal_digests_whatever_file_they_came_from(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,a\n2.50,b\n")
    (tmp_path / "b.csv").write_text('x,y\r\n1.0,"a"\r\n2.5,b\r\n')
    first, second = (
        content.prepare(store, read_table(tmp_path / name), "y") for name in ("a.csv", "b.csv")
    )
    assert first.digest == second.digest
    again = content.prepare(store, content.read(store, first.digest), "y")
    assert again.digest == first.digest


def test_the_label_belongs_to_the_dataset(store: Store) -> None:
    digests = {content.prepare(store, TABLE, label).digest for label in ("taken", "room", None)
               if label != "room"}  # fmt: skip
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("colour", "door.csv: no column 'colour' for the label; there are light, room, taken"),
        ("room", "door.csv: the label 'room' has no value in 1 rows, the first is data row 2"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused(store: Store, label: str, complaint: str) -> None:
    with pytest.raises(InvalidError) as refused:
        content.prepare(store, TABLE, label)
    assert str(refused.value).startswith(complaint)


def test_a_label_alone_is_no_dataset(store: Store) -> None:
    with pytest.raises(InvalidError, match="there is no feature"):
        content.prepare(store, TABLE.select(["taken"]), "taken")


def test_a_damaged_file_is_refused(store: Store) -> None:
    digest = content.prepare(store, TABLE, "taken").digest
    store.path(digest).write_bytes(b"PAR1 not really")
    with pytest.raises((InvalidError, DamagedError), match=digest):
        content.read(store, digest)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (np.array(["a", "b"], object), True),
        (np.array([0.0, 1.0, np.nan]), True),
        (np.arange(100.0), True),
        (np.arange(101.0), False),
        (np.array([0.0, 0.5]), False),
    ],
)
def test_text_and_up_to_100_whole_numbers_are_classes(
    cells: NDArray[np.generic], expected: bool
) -> None:
    assert content.is_classes(cells) is expected  # type: ignore[arg-type]  # one of both kinds


@given(
    rows=st.integers(1, 300),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 5),
)
def test_a_split_is_whole_disjoint_and_keeps_each_class_to_within_a_row(
    rows: int, share: float, seed: int, classes: int
) -> None:
    label = np.random.default_rng(seed).integers(classes, size=rows).astype(np.float64)
    train, held = content.split_rows(label, rows, share, seed)
    assert sorted([*train, *held]) == list(range(rows))
    assert len(held) == int(np.floor(rows * share))
    for value in np.unique(label):
        total = int((label == value).sum())
        assert abs(int((label[held] == value).sum()) - total * share) < 1.0 + 1e-9


def test_a_split_depends_on_the_seed_alone() -> None:
    first, again, other = (content.split_rows(None, 50, 0.3, seed)[1] for seed in (1, 1, 2))
    assert list(first) == list(again)
    assert list(first) != list(other)


def test_a_split_is_stored_as_two_datasets(store: Store) -> None:
    table = Table("t", {"x": np.arange(20.0), "y": np.array([0.0, 1.0] * 10)})
    whole = content.prepare(store, table, "y")
    train, held = content.split(store, whole.digest, "y", 0.25, 3)
    assert (train.rows, held.rows) == (15, 5)
    rows = [content.read(store, part.digest).columns["x"] for part in (train, held)]
    assert sorted(np.concatenate(rows)) == list(range(20))
    assert content.split(store, whole.digest, "y", 0.25, 3) == (train, held)


@pytest.mark.parametrize(
    ("rows", "share", "complaint"),
    [(9, 0.25, "has 9 rows; a split needs at least 10"), (10, 0.05, "leaves a part empty")],
)
def test_too_few_rows_are_not_split(store: Store, rows: int, share: float, complaint: str) -> None:
    table = Table("t", {"x": np.arange(float(rows)), "y": np.zeros(rows)})
    whole = content.prepare(store, table, "y")
    with pytest.raises(InvalidError, match=complaint):
        content.split(store, whole.digest, "y", share, 0)
