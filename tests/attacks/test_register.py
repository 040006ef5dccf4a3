"""The list of attacks, the tests that show them, and the table of docs/security.md agree."""

import re
from collections import Counter

from tests.attacks import register
from tests.attacks.register import HERE, NAMED, PAGE


def test_every_named_attack_has_exactly_one_test() -> None:
    named = [(source, name) for source, names in NAMED.items() for name in names]
    shown = Counter((one.source, one.name) for one in register.shown())
    assert shown == Counter(named)
    assert len(named) == 10 + 7 + 5 + 18 + 11


def test_every_test_that_is_named_exists() -> None:
    for one in register.shown():
        path, _, function = one.test.partition("::")
        assert f"def {function}(" in (HERE.parent / path).read_text("utf-8"), one


def test_every_test_file_that_the_security_page_names_exists() -> None:
    named = re.findall(r"`tests/(\S+\.py)`", PAGE.read_text("utf-8"))
    assert named
    assert [path for path in named if not (HERE.parent / path).is_file()] == []


def test_the_security_page_has_the_table_that_the_tests_make() -> None:
    # To mend it: python -m tests.attacks --write
    assert register.table() in PAGE.read_text("utf-8")


def test_an_attack_that_is_not_shown_to_succeed_says_why() -> None:
    for one in register.shown():
        assert one.stopped_by, one
        assert len(one.without.removeprefix("not shown: ")) > 10, one
