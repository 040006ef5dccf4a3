"""Worlds for attacks, and the mark that names one."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from edgefleet_cloud.broker.testing import Site
from edgefleet_cloud.fleet.testing import open_services
from edgefleet_cloud.services import Services
from tests.attacks.brokers import Ours, Unruled
from tests.attacks.world import World


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(name, stopped_by, without): see tests/attacks")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds, each new and whole."""
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(tmp_path / f"world-{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Brokers:
    """Brokers for one run of the tests, each started when it is first wanted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def ours(self) -> Ours:
        """As the hub starts it."""
        home = self._folder / "home"
        home.mkdir()
        site = Site(home, "embedded")
        site.start("a", "b")
        return Ours(site)

    @cached_property
    def unruled(self) -> Unruled:
        """With TLS alone."""
        return Unruled(self.ours.site, self._folder / "unruled", tls=True)

    @cached_property
    def plain(self) -> Unruled:
        """Without even TLS."""
        return Unruled(self.ours.site, self._folder / "plain", tls=False)

    def started(self) -> list[Ours]:
        """Return those that run, ours last: the others use its parts."""
        return [self.__dict__[n] for n in ("plain", "unruled", "ours") if n in self.__dict__]


@pytest.fixture(scope="package")
def all_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    made = Brokers(tmp_path_factory.mktemp("brokers"))
    yield made
    for broker in made.started():
        broker.stop()


@pytest.fixture
def brokers(all_brokers: Brokers) -> Iterator[Brokers]:
    yield all_brokers
    for broker in all_brokers.started():
        broker.hang_up()


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Callable[[str], Services]]:
    """Make hubs by name, each with an authority, roots and a database of its own."""
    opened: list[Services] = []

    def make(name: str) -> Services:
        home = tmp_path / name
        home.mkdir()
        opened.append(open_services(home))
        return opened[-1]

    yield make
    for services in opened:
        services.database.close()
