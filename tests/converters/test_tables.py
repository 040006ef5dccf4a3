from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Table, read_table


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_numbers_and_text_are_told_apart(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a,b,c,d\n1,x,,true\n2.5,,3,false\n"))
    assert table.names == ["a", "b", "c", "d"]
    assert [table.is_numeric(name) for name in table.names] == [True, False, True, True]
    np.testing.assert_array_equal(table.columns["c"], [np.nan, 3])
    assert table.columns["b"].tolist() == ["x", None]
    np.testing.assert_array_equal(table.columns["d"], [1, 0])


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.array([1.5, 2], np.float32), "b": ["x", None], "n": [1, 2]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    parquet, text = read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.csv")
    for name in parquet.names:
        assert parquet.columns[name].tolist() == text.columns[name].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("a,b\n", "there is a header, but no row"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells as in the header, found 1"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 cells as in the header, found 3"),
        ("a,b,a\n1,2,3\n", "names a column twice: a"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ("a;b\n1;2\n", "separated by ';'; expected commas"),
        ('a,b\n1,"2\n', "broken CSV"),
        (b"a,b\n\xff\xfe,2\n", "not UTF-8 text"),
        (b"PAR1 and then nothing of the kind", "broken Parquet file"),
        ("a" * 201 + "\n1\n", "over 200 characters"),
        (",".join(f"c{i}" for i in range(4097)) + "\n", "4097 columns; at most 4096"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        read_table(written(tmp_path, content))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv")


def test_a_column_of_dates_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"at": pd.to_datetime(["2024-01-01"])}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        BadInputError, match=r"column 'at' has the type datetime64.*expected numbers"
    ):
        read_table(tmp_path / "t.parquet")


def test_text_where_a_number_is_needed_is_named_with_its_row(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a,b\n1,2\n1,oops\n"))
    with pytest.raises(BadInputError, match=r"column 'b', data row 2: expected a number.*'oops'"):
        table.matrix()


def test_an_unknown_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(BadInputError, match="no column 'c'; there are a, b"):
        table.select(["a", "c"])


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n\n3,4\n"))
    assert table.names == ["a", "b"]
    np.testing.assert_array_equal(table.matrix(), [[1, 2], [3, 4]])


def test_rows_below_must_have_the_same_kind_of_cells() -> None:
    numbers = Table("one.csv", {"a": np.array([1.0])})
    text = Table("two.csv", {"a": np.array(["x"], object)})
    with pytest.raises(BadInputError, match=r"two.csv: column 'a', data row 1"):
        numbers.below(text)
    joined = numbers.below(Table("three.csv", {"a": np.array([2.0]), "more": np.array([0.0])}))
    np.testing.assert_array_equal(joined.matrix(), [[1], [2]])


@given(
    st.lists(
        st.tuples(st.floats(-1e300, 1e300), st.integers(-(2**53), 2**53)), min_size=1, max_size=20
    )
)
def test_numbers_survive_a_round_trip(rows: list[tuple[float, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        pd.DataFrame(rows, columns=["x", "y"]).to_csv(path, index=False)
        table = read_table(path)
    np.testing.assert_array_equal(table.matrix(), np.array(rows, np.float64))
