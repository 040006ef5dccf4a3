from pathlib import Path

import pytest

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching import budgets
from edgefleet_converters.searching.budgets import Budgets


def test_a_board_without_budgets_of_its_own_gets_the_general_ones() -> None:
    plan = budgets.plan({"max_drop": 0.005, "boards": {"rpi3": {"max_bytes": 9}}}, {})
    assert plan.of("rpi4") == Budgets(max_drop=0.005)
    assert plan.of("rpi3") == Budgets(max_drop=0.005, max_bytes=9)


def test_the_command_line_replaces_general_values_and_not_those_of_a_board() -> None:
    values = {"max_bytes": 5, "max_drop": 0.1, "boards": {"rpi3": {"max_bytes": 7}}}
    plan = budgets.plan(values, {"max_bytes": 6})
    assert plan.of("rpi4") == Budgets(max_bytes=6, max_drop=0.1)
    assert plan.of("rpi3") == Budgets(max_bytes=7, max_drop=0.1)


def test_confidence_belongs_to_the_whole_plan() -> None:
    assert budgets.plan({"confidence": 0.9}, {}).confidence == 0.9
    with pytest.raises(BadInputError, match="confidence"):
        budgets.plan({"confidence": 1.0}, {})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_byts": 1}, r"b\.yaml: .*`max_byts`; budgets are: max_bytes"),
        ({"max_drop": -0.1}, r"b\.yaml: .*>= 0"),
        ({"max_drop": 1.0}, r"b\.yaml: .*< 1"),
        ({"max_bytes": -1}, r"b\.yaml: .*>= 0"),
        ({"evidence": "maybe"}, r"b\.yaml: .*'maybe'"),
        ({"boards": ["rpi4"]}, "expected `boards` to map names of boards"),
        ({"boards": {"rpi4": 3}}, "expected `boards` to map names of boards"),
        ({"boards": {"rpi4": {"max_ram": 3}}}, r"b\.yaml: rpi4: .*max_ram"),
    ],
)
def test_a_budget_that_is_none_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        budgets.plan(values, {}, "b.yaml")


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "budgets.yaml"
    file.write_text("max_drop: 0.005\nboards:\n  rpi4: {max_bytes: 50000}\n")
    assert budgets.read(file) == {"max_drop": 0.005, "boards": {"rpi4": {"max_bytes": 50000}}}
    file.write_text("")
    assert budgets.read(file) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "expected a map of budgets, not a list"),
        ("a: [", "no YAML"),
        ("a: " + "1" * budgets.MAX_FILE_BYTES, "more than 65536 bytes is no budget file"),
    ],
)
def test_a_file_that_holds_no_budgets_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "budgets.yaml"
    file.write_text(text)
    with pytest.raises(BadInputError, match=said):
        budgets.read(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        budgets.read(tmp_path / "none.yaml")
