"""Tables and the replay of a file: what is read, what is refused, and replacing it under way."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefleet_agent import tables
from edgefleet_agent.config import Source
from edgefleet_agent.errors import SourceError
from edgefleet_agent.inference.serving import Model, Prediction
from edgefleet_agent.sources import ReplaySource
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Slot

SIGNATURE = Signature(
    "classification",
    [Tensor("x", "float32", [None, 2], ["a", "b"])],
    [Tensor("p", "float32", [None, 2])],
    "p",
    classes=["0", "1"],
)


def write(path: Path, text: str) -> Path:
    partial = path.with_suffix(".tmp")
    partial.write_text(text, "utf-8")
    partial.replace(path)
    return path


def test_columns_are_taken_by_name_and_others_left_out(tmp_path: Path) -> None:
    table = tables.read(write(tmp_path / "r.csv", "z,b,y,a\n9,2,l,1\n\n8,4,m,3\n"), "y")
    np.testing.assert_array_equal(tables.rows_for(table, SIGNATURE), [[1, 2], [3, 4]])
    assert table.labels == ["l", "m"]


def test_an_empty_cell_is_a_missing_value(tmp_path: Path) -> None:
    table = tables.read(write(tmp_path / "r.csv", "a,b\n1, \n"))
    np.testing.assert_array_equal(tables.rows_for(table, SIGNATURE), [[1, np.nan]])


def test_text_columns_stay_text(tmp_path: Path) -> None:
    signature = Signature(
        "score",
        [Tensor("n", "float32", [None, 1], ["a"]), Tensor("t", "string", [None, 1], ["b"])],
        [Tensor("p", "float32", [None, 1])],
        "p",
    )
    table = tables.read(write(tmp_path / "r.csv", "a,b\n1,north\n"))
    rows: Any = tables.rows_for(table, signature)
    assert (rows["a"].tolist(), rows["b"]) == ([1.0], ["north"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty: expected a header and rows"),
        ("a,b\n", "has a header and no rows"),
        ("a,a\n1,2\n", "names a column twice"),
        ("a,b\n1,2\n1\n", "line 3: 1 cells; the header has 2"),
        ("a\n1\n", "lacks the columns b that the model takes"),
        ("a,b\n1,2\n1,two\n", "row 2: column 'b' must hold numbers, not 'two'"),
        ('a,b\n1,"2\n', "is not a CSV file in UTF-8"),
    ],
)
def test_a_malformed_csv_is_refused_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = write(tmp_path / "r.csv", text)
    with pytest.raises(SourceError, match=complaint) as caught:
        tables.rows_for(tables.read(path), SIGNATURE)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(SourceError, match="is not a CSV file in UTF-8"):
        tables.read(tmp_path / "r.csv")
    with pytest.raises(SourceError, match="No such file or directory"):
        tables.read(tmp_path / "none.csv")
    with pytest.raises(SourceError, match="has no label column 'y'"):
        tables.read(write(tmp_path / "s.csv", "a,b\n1,2\n"), "y")


def test_an_npz_gives_rows_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, rows=np.ones((3, 2)), labels=np.array([1, 0, 1]))
    table = tables.read(path)
    assert table.labels == ["1", "0", "1"]
    assert tables.rows_for(table, SIGNATURE) is table.array
    np.savez(path, rows=np.ones((3, 5)))
    with pytest.raises(SourceError, match="has 5 columns; the model takes 2"):
        tables.rows_for(tables.read(path), SIGNATURE)


@pytest.mark.parametrize("kind", ["junk", "pickle", "no rows", "flat", "labels"])
def test_an_npz_of_another_form_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.npz"
    if kind == "junk":
        path.write_bytes(b"PK junk")
    else:
        content: dict[str, Any] = {
            "pickle": {"rows": np.array([{}], object)},
            "no rows": {"x": np.ones((2, 2))},
            "flat": {"rows": np.ones(4)},
            "labels": {"rows": np.ones((2, 2)), "labels": np.ones(3)},
        }[kind]
        np.savez(path, **content)
    with pytest.raises(SourceError, match=r"r\.npz"):
        tables.read(path)


class Heard(Model):
    """A model that remembers its rows and labels instead of answering."""

    def __init__(self) -> None:
        super().__init__("m", lambda slot, why: None)
        self.rows: list[list[float]] = []
        self.labels: list[str] = []
        self.release = 1

    @property
    def slot(self) -> Slot | None:
        return Slot("m", "v", self.release, "x", f"{self.release:064d}")

    @property
    def signature(self) -> Signature:
        return SIGNATURE

    def predict(self, row: Any) -> Prediction:
        self.rows.append(list(row))
        return Prediction(len(self.rows), "m", "v", 1, "0", 1.0, [1.0])

    def feedback(self, prediction: int, label: object) -> bool:
        self.labels.append(str(label))
        return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Callable[..., Heard]]:
    running: list[tuple[ReplaySource, threading.Thread]] = []

    def start(**changes: Any) -> Heard:
        options: dict[str, Any] = {"path": str(tmp_path / "r.csv"), "model": "m"}
        options |= {"rows_per_s": 2000.0, "label_column": "y", **changes}
        heard = Heard()
        source = ReplaySource(Source(**options), heard)
        thread = threading.Thread(target=source.run)
        running.append((source, thread))
        thread.start()
        return heard

    yield start
    for source, thread in running:
        source.stop()
        thread.join(10)
        assert not thread.is_alive()


def test_rows_are_replayed_for_ever_with_their_labels(
    tmp_path: Path, replay: Callable[..., Heard]
) -> None:
    write(tmp_path / "r.csv", "a,b,y\n1,2,p\n3,4,q\n")
    heard = replay()
    until(lambda: len(heard.labels) >= 5)
    assert heard.rows[:5] == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert heard.labels[:5] == ["p", "q", "p", "q", "p"]


def test_a_replaced_file_is_taken_up_and_a_malformed_one_is_not(
    tmp_path: Path, replay: Callable[..., Heard], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "r.csv", "a,b,y\n1,1,p\n")
    heard = replay()
    until(lambda: len(heard.rows) > 0)
    write(path, "a,b,y\n2,2\n")
    until(lambda: "line 2: 2 cells; the header has 3" in caplog.text)
    count = len(heard.rows)
    until(lambda: len(heard.rows) > count + 10)
    assert heard.rows[-1] == [1, 1]
    write(path, "a,b,y\n3,3,q\n")
    until(lambda: heard.rows[-1] == [3, 3])
    assert caplog.text.count("line 2: 2 cells") == 1


def test_a_file_that_comes_later_is_waited_for(
    tmp_path: Path, replay: Callable[..., Heard], caplog: pytest.LogCaptureFixture
) -> None:
    heard = replay()
    until(lambda: "No such file" in caplog.text)
    write(tmp_path / "r.csv", "a,b,y\n1,1,p\n")
    until(lambda: len(heard.rows) > 0)


def test_rows_go_on_where_they_were_when_a_new_release_serves(
    tmp_path: Path, replay: Callable[..., Heard]
) -> None:
    cells = "".join(f"{i},{i},y\n" for i in range(100_000))
    write(tmp_path / "r.csv", f"a,b,y\n{cells}")
    heard = replay()
    until(lambda: len(heard.rows) > 10)
    heard.release = 2
    count = len(heard.rows)
    until(lambda: len(heard.rows) > count + 2500)
    values = [row[0] for row in heard.rows]
    assert values == sorted(values)


def test_the_pace_is_kept(tmp_path: Path, replay: Callable[..., Heard]) -> None:
    write(tmp_path / "r.csv", "a,b,y\n1,1,p\n")
    heard = replay(rows_per_s=50.0)
    until(lambda: len(heard.rows) > 0)
    started, count = time.monotonic(), len(heard.rows)
    until(lambda: len(heard.rows) >= count + 25)
    assert time.monotonic() - started >= 0.4
