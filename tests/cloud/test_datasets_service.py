"""Datasets in the database, and those that scikit-learn brings along."""

import pytest

from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.datasets import bundled, service
from edgefleet_cloud.datasets.content import Prepared
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_protocol.errors import MalformedError


def prepared(digest: str, rows: int = 10) -> Prepared:
    return Prepared(digest.ljust(64, "0"), rows, [{"name": "x", "kind": "numeric"}], "y")


def test_adding_again_gives_the_row_that_is_there(database: Database) -> None:
    with database.write() as session:
        first = service.add(session, prepared("a"), name="one", source="file:a", now=1.0)
        again = service.add(session, prepared("a"), name="two", source="file:b", now=2.0)
        assert again is first
        assert (again.name, again.created_at) == ("one", 1.0)


def test_a_name_must_be_fit_for_a_topic(database: Database) -> None:
    with database.write() as session, pytest.raises(MalformedError, match="'My Data'"):
        service.add(session, prepared("a"), name="My Data", source="x", now=1.0)


def test_a_dataset_is_found_by_digest_by_its_beginning_and_by_its_newest_name(
    database: Database,
) -> None:
    with database.write() as session:
        old = service.add(session, prepared("abcdef01" + "1"), name="door", source="x", now=1.0)
        new = service.add(session, prepared("abcdef01" + "2"), name="door", source="x", now=2.0)
        assert service.find(session, old.digest) is old
        assert service.find(session, "door") is new
        assert service.find(session, "abcdef011") is old
        with pytest.raises(ConflictError, match="several datasets begin with 'abcdef01'"):
            service.find(session, "abcdef01")
        for unknown in ("abcdef0", "abcdef03", "%" * 8, "window"):
            with pytest.raises(NotFoundError):
                service.find(session, unknown)
        assert service.list_datasets(session) == [new, old]
        assert service.list_datasets(session, limit=1) == [new]


def test_the_parts_of_a_split_have_the_whole_as_parent(database: Database) -> None:
    with database.write() as session:
        whole = service.add(session, prepared("a", 40), name="d" * 64, source="x", now=1.0)
        train, held = service.add_split(session, whole, prepared("b", 30), prepared("c", 10), 2.0)
        assert train.parents == held.parents == [whole.digest]
        assert (train.name, held.name) == ("d" * 55 + "-train", "d" * 55 + "-holdout")


def test_bundled_sets_have_the_classes_of_their_makers() -> None:
    iris = bundled.load("iris")
    assert len(iris) == 150
    assert set(iris.columns["target"]) == {"setosa", "versicolor", "virginica"}
    assert iris.names[0] == "sepal length (cm)"


def test_a_set_that_is_not_bundled_is_refused() -> None:
    with pytest.raises(InvalidError, match="'mnist' is no bundled data set; expected one of br"):
        bundled.load("mnist")
