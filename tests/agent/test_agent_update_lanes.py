"""Challengers beside a serving model: fetched, tried and confirmed alike, and never in its way."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from edgefleet_agent.testing import Bundle, HubDouble, Rig
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol.messages import BlockRequest, Refusal, Result, Window
from edgefleet_protocol.trust import DirectorTarget

Make = Callable[..., Bundle]
Rigs = Callable[..., Rig]
ROW = [0.3, -0.2, 0.9, 0.1]


def outcomes(hub: HubDouble) -> list[tuple[int, str]]:
    return [(body.attempt, str(body.outcome)) for body in hub.bodies(Result)]


@pytest.fixture
def two(rig: Rigs, hub: HubDouble, bundle: Make) -> Callable[..., tuple[Rig, Any, Any]]:
    """Make a device that serves release 1, and the order of a challenger, release 2."""

    def make(
        name: str = "classifier.tflite", **order: Any
    ) -> tuple[Rig, DirectorTarget, DirectorTarget]:
        device = rig()
        champion = hub.release(bundle(), 1)
        hub.send_all(device.link, champion)
        device.settle()
        made = bundle(name, version="v2")
        challenger = hub.release(made, 2, role=order.pop("role", "shadow"), **order)
        return device, champion, challenger

    return make


def test_a_shadow_is_confirmed_beside_the_primary_which_goes_on_answering(
    two: Callable[..., Any], hub: HubDouble
) -> None:
    device, champion, challenger = two()
    hub.send_all(device.link, champion, challenger)
    device.settle()
    assert outcomes(hub) == [(1, "confirmed"), (2, "confirmed")]
    assert [slot.release for slot in device.state.serving] == [1]
    assert [slot.release for slot in device.state.challengers] == [2]
    assert [(a.lane, a.number, str(a.step)) for a in device.state.attempts] == [
        ("primary", 1, "confirmed"),
        ("challenger", 2, "confirmed"),
    ]
    assert device.engine.model("colours").predict(ROW).release == 1


def test_a_split_answers_its_share_of_the_calls(two: Callable[..., Any], hub: HubDouble) -> None:
    device, champion, challenger = two(role="split", share_percent=50)
    hub.send_all(device.link, champion, challenger)
    device.settle()
    model = device.engine.model("colours")
    releases = {model.predict(ROW).release for _ in range(100)}
    assert releases == {1, 2}


def test_an_unconfirmed_split_is_proven_by_its_own_calls(
    two: Callable[..., Any], hub: HubDouble
) -> None:
    device, champion, challenger = two(role="split", share_percent=50, confirm_rows=5)
    hub.send_all(device.link, champion, challenger)
    device.settle()
    assert device.steps() == {"colours": "confirmed", "colours~challenger": "active"}
    model = device.engine.model("colours")
    for _ in range(100):
        model.predict(ROW)
    device.settle()
    assert outcomes(hub)[-1] == (2, "confirmed")


def test_a_split_that_fails_is_rolled_back_and_costs_no_call(
    two: Callable[..., Any], hub: HubDouble
) -> None:
    device, champion, challenger = two(
        "brittle.onnx", role="split", share_percent=99, confirm_rows=10_000
    )
    hub.send_all(device.link, champion, challenger)
    device.settle()
    model = device.engine.model("colours")
    answers = [model.predict([101.0, 0.0, 0.0, 0.0]) for _ in range(50)]
    device.settle()
    assert all(np.isfinite(answer.scores).all() for answer in answers)
    assert outcomes(hub)[-1] == (2, "rolled_back")
    assert device.state.challengers == []
    assert [slot.release for slot in device.state.serving] == [1]


def test_a_challenger_comes_back_beside_its_primary_after_a_restart(
    two: Callable[..., Any], rig: Rigs, hub: HubDouble
) -> None:
    device, champion, challenger = two()
    hub.send_all(device.link, champion, challenger)
    device.settle()
    device.close()
    device = rig()
    device.settle()
    assert [slot.release for slot in device.state.serving] == [1]
    assert [slot.release for slot in device.state.challengers] == [2]


def test_a_withdrawn_challenger_goes_and_its_files_with_it(
    two: Callable[..., Any], hub: HubDouble, bundle: Make
) -> None:
    device, champion, challenger = two()
    hub.send_all(device.link, champion, challenger)
    device.settle()
    hub.send_all(device.link, champion)
    device.settle()
    assert device.state.challengers == []
    assert [slot.release for slot in device.state.serving] == [1]
    held = {path.name for path in (device.store / "files").iterdir()}
    assert bundle("classifier.tflite", version="v2").digest not in held


def test_a_promoted_challenger_is_not_downloaded_again(
    two: Callable[..., Any], hub: HubDouble
) -> None:
    device, champion, challenger = two()
    hub.send_all(device.link, champion, challenger)
    device.settle()
    hub.requests.clear()
    promoted = msgspec.structs.replace(challenger, role="primary", attempt=3)
    hub.send_all(device.link, promoted)
    device.settle()
    assert outcomes(hub)[-1] == (3, "confirmed")
    assert [r for r in hub.requests if isinstance(r, BlockRequest)] == []
    assert hub.bodies(Result)[-1].bytes_fetched == 0
    assert [slot.release for slot in device.state.serving] == [2]
    assert device.state.challengers == []
    assert device.engine.model("colours").predict(ROW).release == 2


def test_other_orders_of_a_challenger_begin_no_new_attempt(
    two: Callable[..., Any], hub: HubDouble
) -> None:
    device, champion, challenger = two(role="shadow")
    hub.send_all(device.link, champion, challenger)
    device.settle()
    split = msgspec.structs.replace(challenger, role="split", share_percent=99)
    hub.send_all(device.link, champion, split)
    device.settle()
    assert outcomes(hub) == [(1, "confirmed"), (2, "confirmed")]
    model = device.engine.model("colours")
    assert 2 in {model.predict(ROW).release for _ in range(20)}


def test_an_assignment_that_lists_a_model_twice_in_one_lane_is_refused(
    two: Callable[..., Any], hub: HubDouble, bundle: Make
) -> None:
    device, champion, challenger = two()
    other = hub.release(bundle(version="v3"), 3, role="split")
    hub.send_all(device.link, champion, challenger, other)
    device.settle()
    assert [(r.what, r.reason) for r in hub.bodies(Refusal)] == [("assignment", "malformed")]
    assert [slot.release for slot in device.state.serving] == [1]


def test_a_rejected_challenger_leaves_the_primary_and_its_windows_alone(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    verdicts = {"v1": Verdict([]), "v2": Verdict(["it is wrong"])}

    def trial(request: Any, cancelled: Any) -> Verdict:
        from pathlib import Path

        from edgefleet_protocol import manifest

        return verdicts[manifest.decode(Path(request.manifest).read_bytes()).model_version]

    device = rig(surroundings={"try_candidate": trial})
    champion = hub.release(bundle(), 1, window_rows=10)
    challenger = hub.release(bundle("inverted.onnx", version="v2"), 2, role="shadow")
    hub.send_all(device.link, champion, challenger)
    device.settle()
    assert sorted(outcomes(hub)) == [(1, "confirmed"), (2, "rejected")]
    model = device.engine.model("colours")
    for _ in range(10):
        model.predict(ROW)
    device.settle()
    assert [(w.release, w.rows) for w in hub.bodies(Window)] == [(1, 10)]


def test_a_challenger_is_fetched_after_the_primaries(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = rig()
    champion = hub.release(bundle(), 1)
    challenger = hub.release(bundle("classifier.tflite", version="v2"), 2, role="shadow")
    real, stopped = hub._serve, True
    blob = bundle().manifest.file("model").transfer.digest
    monkeypatch.setattr(
        hub, "_serve", lambda link, r: None if stopped and r.digest == blob else real(link, r)
    )
    hub.send_all(device.link, champion, challenger)
    device.settle()
    asked = {r.digest for r in hub.requests if isinstance(r, BlockRequest)}
    assert challenger_digest(bundle) not in asked
    waiting = next(a for a in device.state.attempts if a.lane == "challenger")
    assert waiting.reason == "waits until no serving model is being fetched"
    stopped = False
    device.later(60.0)
    assert sorted(outcomes(hub)) == [(1, "confirmed"), (2, "confirmed")]


def challenger_digest(bundle: Make) -> str:
    return bundle("classifier.tflite", version="v2").digest
