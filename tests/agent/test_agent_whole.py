"""The agent as an application runs it: threads, a replayed file, a clean stop and health."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet_agent.agent import Agent
from edgefleet_agent.config import Config, Source
from edgefleet_agent.errors import EnrolmentError, StoreError
from edgefleet_agent.inbox import MAX_NETWORK_BYTES, Inbox
from edgefleet_agent.testing import Bundle, HubDouble, MemoryLink
from edgefleet_protocol.messages import Result, Window

Make = Callable[..., Bundle]


def serve(hub: HubDouble, link: MemoryLink, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, "nothing happened in time"
        hub.answer(link)
        time.sleep(0.01)


@pytest.fixture
def started(tmp_path: Path, hub: HubDouble) -> Iterator[Callable[..., tuple[Agent, MemoryLink]]]:
    agents: list[Agent] = []
    store = tmp_path / "store"
    hub.identity_into(store)

    def make(**changes: object) -> tuple[Agent, MemoryLink]:
        link = MemoryLink()
        config = Config(store=str(store), board="generic-x86_64", **changes)  # type: ignore[arg-type]  # fields of Config
        agent = Agent(config, link=link)
        agents.append(agent)
        agent.start()
        link.connect()
        return agent, link

    yield make
    for agent in agents:
        agent.stop()


def test_a_replayed_file_proves_a_release_and_fills_windows(
    started: Callable[..., tuple[Agent, MemoryLink]], hub: HubDouble, bundle: Make, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,c,d,colour\n1,0,0,0,red\n0,1,0,0,red\n", "utf-8")
    source = Source(str(rows), "colours", rows_per_s=500.0, label_column="colour")
    agent, link = started(source=source)
    target = hub.release(bundle(), 1, window_rows=100, confirm_rows=20)
    hub.send_all(link, target)
    serve(hub, link, lambda: len(hub.bodies(Window)) >= 2)
    assert [str(result.outcome) for result in hub.bodies(Result)] == ["confirmed"]
    window = hub.bodies(Window)[1]
    assert (window.rows, window.labelled, window.correct) == (100, 100, 50)
    assert window.health.memory_bytes
    assert agent.model("colours").predict([1.0, 0.0, 0.0, 0.0]).label == "red"


def test_a_stopped_agent_keeps_its_open_window_and_lets_go_of_its_store(
    started: Callable[..., tuple[Agent, MemoryLink]], hub: HubDouble, bundle: Make, tmp_path: Path
) -> None:
    agent, link = started()
    hub.send_all(link, hub.release(bundle(), 1))
    serve(hub, link, lambda: len(hub.bodies(Result)) == 1)
    assert agent.model("colours").wait(10.0)
    for _ in range(7):
        agent.model("colours").predict([0.0] * 4)
    with pytest.raises(StoreError, match="is in use by another agent"):
        Agent(Config(store=str(tmp_path / "store")), link=MemoryLink())
    agent.stop()
    _, link = started()
    serve(hub, link, lambda: len(hub.bodies(Window)) == 1)
    assert hub.bodies(Window)[0].rows == 7


def test_a_device_that_is_not_enrolled_has_no_agent(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError):
        Agent(Config(store=str(tmp_path / "new")), link=MemoryLink())
    with pytest.raises(EnrolmentError):  # the lock was let go of
        Agent(Config(store=str(tmp_path / "new")), link=MemoryLink())


def test_an_inbox_bounds_the_network_and_never_the_agent_itself() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.put("half", MAX_NETWORK_BYTES // 2)
    inbox.put("fits", MAX_NETWORK_BYTES // 2)
    inbox.put("dropped", 1)
    inbox.put("own")
    assert inbox.dropped == 1
    assert [inbox.get(0), inbox.get(0), inbox.get(0), inbox.get(0)] == ["half", "fits", "own", None]
    inbox.put("room again", MAX_NETWORK_BYTES)
    assert bool(inbox)
    assert inbox.get(0) == "room again"
