"""Signed metadata judged in a child process: once for each message, and bounded."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgefleet_agent.errors import StoreError
from edgefleet_agent.testing import Bundle, HubDouble
from edgefleet_agent.trusting import refresh, tufclient
from edgefleet_agent.trusting.trust import Accepted, Trust

Make = Callable[..., Bundle]


class Counting:
    """The TUF client in this process, and how often it was asked."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.broken = False

    def __call__(self, request: refresh.Request) -> refresh.Outcome:
        judged = (request.director, request.image)
        self.folders.append("+".join(Path(one.folder).name for one in judged if one))
        if self.broken:
            raise StoreError("the child ended")
        return tufclient.refresh(request)


@pytest.fixture
def client() -> Counting:
    return Counting()


@pytest.fixture
def trust(tmp_path: Path, hub: HubDouble, client: Counting) -> Trust:
    return Trust(
        tmp_path / "trust",
        device=hub.device,
        board="generic-x86_64",
        image_root=hub.image.roots[0],
        director_root=hub.director.roots[0],
        run_client=client,
    )


def image_of(hub: HubDouble, folder: Path) -> refresh.Repository:
    folder.mkdir()
    parts = {topic.rpartition("/")[2]: data for topic, data in hub.image_messages()}
    return refresh.Repository(str(folder), hub.image.roots[0], parts)


def request_of(hub: HubDouble, folder: Path) -> refresh.Request:
    return refresh.Request(time.time(), image=image_of(hub, folder))


def give(trust: Trust, hub: HubDouble, assignment: bytes) -> object:
    for topic, data in hub.image_messages():
        trust.take_image_role(topic.rpartition("/")[2], data)
    trust.take_assignment(assignment)
    return trust.judge(1.0, {})


def test_the_child_leaves_what_it_verified_in_the_folder(tmp_path: Path, hub: HubDouble) -> None:
    image = image_of(hub, tmp_path / "image")
    outcome = refresh.in_child(refresh.Request(time.time(), image=image))
    assert outcome == refresh.Outcome(image=refresh.Verified())
    assert (tmp_path / "image" / "targets.json").read_bytes() == image.parts["targets"]


def test_the_child_says_why_it_does_not_take_something(tmp_path: Path, hub: HubDouble) -> None:
    image = image_of(HubDouble(), tmp_path / "image")
    foreign = msgspec.structs.replace(image, bootstrap=hub.image.roots[0])
    verdict = refresh.in_child(refresh.Request(time.time(), image=foreign)).image
    assert verdict
    assert verdict.fault == "unsigned"
    assert "timestamp" in verdict.text


def test_a_child_that_cannot_answer_in_time_is_an_error_of_the_store(
    tmp_path: Path, hub: HubDouble
) -> None:
    with pytest.raises(StoreError, match=r"signed metadata could not be judged: .*timed out"):
        refresh.in_child(request_of(hub, tmp_path / "image"), timeout_s=0.001)


def test_the_same_assignment_is_not_verified_twice(
    trust: Trust, hub: HubDouble, client: Counting, bundle: Make
) -> None:
    assignment = hub.assignment(hub.release(bundle(), 1))
    assert isinstance(give(trust, hub, assignment), Accepted)
    trust.take_assignment(assignment)
    assert isinstance(trust.judge(2.0, {}), Accepted)
    assert client.folders == ["director+image"]
    trust.take_assignment(hub.assignment(hub.release(bundle(), 1)))
    assert isinstance(trust.judge(3.0, {}), Accepted)
    assert client.folders == ["director+image", "director+image"]


def test_what_could_not_be_judged_is_judged_later(
    trust: Trust, hub: HubDouble, client: Counting, bundle: Make
) -> None:
    client.broken = True
    with pytest.raises(StoreError):
        give(trust, hub, hub.assignment(hub.release(bundle(), 1)))
    client.broken = False
    assert isinstance(trust.judge(2.0, {}), Accepted)


def test_an_agent_does_not_hold_the_tuf_client_in_memory() -> None:
    code = (
        "import sys, edgefleet_agent.agent\n"
        "heavy = {'tuf', 'securesystemslib', 'cryptography', 'urllib3'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
