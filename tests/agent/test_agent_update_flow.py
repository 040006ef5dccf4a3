"""Updates as a whole: from assignment to confirmed model, faults, and death at every write."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgefleet_agent import files
from edgefleet_agent.config import Budgets, Config
from edgefleet_agent.downloading import slots
from edgefleet_agent.errors import InferenceError, NotServingError
from edgefleet_agent.testing import Bundle, HubDouble, Rig, padded_onnx
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.messages import (
    Ack,
    Block,
    BlockRequest,
    Refusal,
    Result,
    Step,
    SyncRequest,
    Window,
)
from edgefleet_protocol.trust import SamplePolicy

Make = Callable[..., Bundle]
Rigs = Callable[..., Rig]
ROW = [0.3, -0.2, 0.9, 0.1]


def outcomes(hub: HubDouble) -> list[tuple[int, str, str]]:
    return [(body.attempt, str(body.outcome), body.reason) for body in hub.bodies(Result)]


def refusals(hub: HubDouble) -> list[tuple[str, str]]:
    return [(body.what, body.reason) for body in hub.bodies(Refusal)]


def test_an_assigned_model_is_fetched_tried_and_answers(
    rig: Rigs, hub: HubDouble, bundle: Make, scores: Any
) -> None:
    device = rig(real_trial=True)
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    answer = device.engine.model("colours").predict(ROW)
    np.testing.assert_allclose(answer.scores, scores(np.array([ROW]))[0], atol=1e-6)
    assert outcomes(hub) == [(1, "confirmed", "")]
    assert [slot.release for slot in device.state.serving] == [1]
    assert device.state.assignment == 1
    attempt = device.state.attempts[0]
    assert attempt.received_bytes == attempt.total_bytes > 0


def test_a_second_model_version_on_another_runtime_takes_over(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig(real_trial=True)
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    lite = bundle("classifier.tflite", version="v2", runtime_min="2.0")
    hub.send_all(device.link, hub.release(lite, 2))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", ""), (2, "confirmed", "")]
    assert device.engine.model("colours").predict(ROW).version == "v2"
    assert [slot.version for slot in device.state.previous] == ["v1"]


def test_files_that_two_releases_share_travel_once(rig: Rigs, hub: HubDouble, bundle: Make) -> None:
    device = rig()
    first, second = bundle(), bundle(version="v2")
    hub.send_all(device.link, hub.release(first, 1))
    device.settle()
    hub.send_all(device.link, hub.release(second, 2))
    device.settle()
    assert [result.bytes_fetched for result in hub.bodies(Result)][1] == len(second.data)


def test_nothing_is_asked_for_and_nothing_refused_without_an_assignment(
    rig: Rigs, hub: HubDouble
) -> None:
    device = rig()
    for topic, data in hub.image_messages():
        device.link.send(topic, data)
    device.settle()
    device.later(120.0)
    assert hub.requests == []
    assert refusals(hub) == []


def test_an_assignment_before_its_image_metadata_waits_for_it(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    target = hub.release(bundle(), 1)
    device.link.send(topics.down("cam-1", "assignment"), hub.assignment(target))
    device.settle()
    assert device.steps() == {}
    device.later(4.0)
    assert [type(request) for request in hub.requests] == [SyncRequest]
    for topic, data in reversed(hub.image_messages()):
        device.link.send(topic, data)
        device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]
    assert refusals(hub) == []


def test_a_bundle_that_does_not_fit_the_device_is_rejected_before_its_model_travels(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    unfit = bundle(runtime_min="99.0")
    hub.send_all(device.link, hub.release(unfit, 1))
    device.settle()
    (attempt, outcome, reason), *_ = outcomes(hub)
    assert (attempt, outcome) == (1, "rejected")
    assert reason.startswith("incompatible: needs onnxruntime >= 99.0; the device has ")
    assert hub.bodies(Result)[0].bytes_fetched == len(unfit.data)


def test_a_manifest_of_another_version_than_its_target_says_is_rejected(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    made = bundle()
    other = msgspec.structs.replace(made.manifest, model_version="v9")
    false = Bundle(other, made.data, made.blobs)  # signed as v9, its manifest says v1
    hub.send_all(device.link, hub.release(false, 1))
    device.settle()
    assert outcomes(hub)[0][1] == "rejected"
    assert refusals(hub) == [("bundle", "mix-and-match")]


def test_a_failed_trial_rejects_the_release_and_the_one_before_serves(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig(real_trial=True)
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.send_all(device.link, hub.release(bundle("inverted.onnx", version="v2"), 2))
    device.settle()
    attempt, outcome, reason = outcomes(hub)[1]
    assert (attempt, outcome) == (2, "rejected")
    assert reason.startswith("golden vectors: scores are off by up to ")
    assert [slot.release for slot in device.state.serving] == [1]
    held = {path.name for path in (device.store / "files").iterdir()}
    assert bundle("inverted.onnx", version="v2").digest not in held


def test_a_rejected_attempt_is_not_repeated_and_a_new_number_is(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    verdicts = iter([Verdict(["first fault"]), Verdict([])])
    device = rig(surroundings={"try_candidate": lambda *_: next(verdicts)})
    target = hub.release(bundle(), 1)
    hub.send_all(device.link, target)
    device.settle()
    hub.send_all(device.link, target)  # signed anew, same attempt
    device.settle()
    assert outcomes(hub) == [(1, "rejected", "first fault")]
    hub.send_all(device.link, msgspec.structs.replace(target, attempt=2))
    device.settle()
    assert outcomes(hub) == [(1, "rejected", "first fault"), (2, "confirmed", "")]


def test_a_newer_assignment_supersedes_a_download(rig: Rigs, hub: HubDouble, bundle: Make) -> None:
    device = rig()
    stuck = bundle()
    hub.send_all(device.link, hub.release(stuck, 1))
    del hub.blobs[stuck.manifest.file("model").transfer.digest]
    device.settle()
    assert device.steps() == {"colours": "fetching"}
    hub.send_all(device.link, hub.release(bundle("classifier.tflite", version="v2"), 2))
    device.settle()
    assert outcomes(hub) == [
        (1, "superseded", "attempt 2 took its place"),
        (2, "confirmed", ""),
    ]


def test_a_withdrawn_model_stops_serving_and_its_files_go(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.send_all(device.link)
    device.settle()
    with pytest.raises(NotServingError, match="this device serves no model 'colours'"):
        device.engine.model("colours").predict(ROW)
    assert device.state.serving == []
    assert list((device.store / "files").iterdir()) == []
    hub.send_all(device.link, hub.release(bundle(), 2))
    device.settle()
    assert [slot.release for slot in device.state.serving] == [2]


def test_a_candidate_is_confirmed_by_the_row_that_completes_its_proof(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1, confirm_rows=3))
    device.settle()
    model = device.engine.model("colours")
    for _ in range(2):
        model.predict(ROW)
    device.settle()
    assert device.steps() == {"colours": "active"}
    assert outcomes(hub) == []
    model.predict(ROW)
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]


def test_a_candidate_not_proven_at_its_deadline_is_rolled_back(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    target = hub.release(bundle(version="v2"), 2, confirm_rows=10, confirm_deadline_s=60)
    hub.send_all(device.link, target)
    device.settle()
    device.later(59.5)
    assert device.steps() == {"colours": "active"}
    device.later(0.5)
    assert outcomes(hub)[1] == (
        2,
        "rolled_back",
        "no end of active in time: not proven within 60 s",
    )
    assert [slot.release for slot in device.state.serving] == [1]


def test_a_candidate_that_fails_while_active_is_rolled_back_without_a_failed_call(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig(real_trial=True)
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.send_all(device.link, hub.release(bundle("brittle.onnx", version="v2"), 2, confirm_rows=9))
    device.settle()
    model = device.engine.model("colours")
    assert model.predict(ROW).release == 2
    assert model.predict([101.0, 0.0, 0.0, 0.0]).release == 1
    device.settle()
    attempt, outcome, reason = outcomes(hub)[1]
    assert (attempt, outcome) == (2, "rolled_back")
    assert reason.startswith("scores are not finite: ")
    assert [window.errors for window in hub.bodies(Window) if window.release == 2] == [1]
    assert model.predict(ROW).release == 1


def test_a_confirmed_model_that_fails_raises_and_stays(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle("brittle.onnx"), 1))
    device.settle()
    model = device.engine.model("colours")
    with pytest.raises(InferenceError, match=r"colours release 1: scores are not finite"):
        model.predict([101.0, 0.0, 0.0, 0.0])
    assert model.predict(ROW).release == 1


def test_the_third_start_without_a_confirmation_rolls_back(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.send_all(device.link, hub.release(bundle(version="v2"), 2, confirm_rows=10))
    device.settle()
    for _ in range(2):
        device.close()
        device = rig()
        device.settle()
        assert [slot.release for slot in device.state.serving] == [2]
    device.close()
    device = rig()
    device.settle()
    assert outcomes(hub)[1] == (
        2,
        "rolled_back",
        "3 starts of the agent without a confirmation",
    )
    assert [slot.release for slot in device.state.serving] == [1]


def test_a_restarted_device_serves_before_it_is_connected(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    device.close()
    device = rig()
    assert device.engine.model("colours").predict(ROW).release == 1


def test_damage_of_the_serving_release_is_found_at_start_and_fetched_again(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    for release in (1, 2):
        made = bundle(version=f"v{release}", rows=64 + release)
        hub.send_all(device.link, hub.release(made, release))
        device.settle()
    device.close()
    path = device.store / "files" / made.manifest.file("golden").digest
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    device = rig()
    assert device.engine.model("colours").predict(ROW).release == 1
    device.settle()
    assert device.engine.model("colours").predict(ROW).release == 2
    assert ("bundle", "damaged") in refusals(hub)


def test_a_journal_that_cannot_be_read_is_set_aside_and_told_about(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    target = hub.release(bundle(), 1)
    hub.send_all(device.link, target)
    device.settle()
    device.close()
    (device.store / "models" / "colours.json").write_bytes(b"{")
    device = rig()
    hub.send_all(device.link, msgspec.structs.replace(target, attempt=2))
    device.settle()
    assert ("journal", "damaged") in refusals(hub)
    assert outcomes(hub)[-1] == (2, "confirmed", "")


# -- blocks --------------------------------------------------------------------------------------


def test_a_flipped_block_is_dropped_reported_and_asked_for_again(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = rig()
    made = bundle()
    digest = made.manifest.file("model").transfer.digest
    right, lies = hub.block, iter([True, True])

    def block(wanted: str, index: int) -> bytes:
        data = right(wanted, index)
        if wanted == digest and next(lies, False):
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    monkeypatch.setattr(hub, "block", block)
    hub.send_all(device.link, hub.release(made, 1))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]
    assert refusals(hub) == [("artifact block", "hash-mismatch")]
    assert hub.bodies(Refusal)[0].digest == digest


@pytest.mark.parametrize("kind", ["flipped", "truncated", "too long", "empty"])
def test_three_wrong_answers_for_a_block_reject_the_attempt(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device = rig()
    made = bundle()
    digest = made.manifest.file("model").transfer.digest
    right = hub.block
    wrong = {
        "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "truncated": lambda data: data[:-1],
        "too long": lambda data: data + b"x",
        "empty": lambda data: b"",
    }[kind]

    def block(wanted: str, index: int) -> bytes:
        return wrong(right(wanted, index)) if wanted == digest else right(wanted, index)

    monkeypatch.setattr(hub, "block", block)
    hub.send_all(device.link, hub.release(made, 1))
    device.settle()
    attempt, outcome, reason = outcomes(hub)[0]
    assert (attempt, outcome) == (1, "rejected")
    assert reason.startswith("hash-mismatch: block 0 ")
    assert reason.endswith("3 answers in a row")
    asked = [r for r in hub.requests if isinstance(r, BlockRequest) and r.digest == digest]
    assert len(asked) == 3
    assert device.engine.model("colours").slot is None


def test_a_wrong_manifest_never_reaches_its_parser(rig: Rigs, hub: HubDouble, bundle: Make) -> None:
    device = rig()
    made = bundle()
    target = hub.release(made, 1)
    hub.blobs[made.digest] = bytes(len(made.data))
    hub.send_all(device.link, target)
    device.settle()
    assert outcomes(hub)[0][2].startswith("hash-mismatch: block 0 of ")


def test_blocks_that_the_hub_cannot_serve_fail_the_attempt_after_five_answers(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    made = bundle()
    hub.send_all(device.link, hub.release(made, 1))
    digest = made.manifest.file("model").transfer.digest
    del hub.blobs[digest]
    device.settle()
    for _ in range(3):
        device.later(60.0)
    assert outcomes(hub) == []
    device.later(60.0)
    assert outcomes(hub) == [(1, "failed", f"the hub cannot serve {digest}: no such blob")]


def test_a_download_without_progress_fails_after_its_stall_time_of_connection(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = Config(
        store=str(tmp_path / "store"), board="generic-x86_64", budgets=Budgets(fetch_stall_s=100.0)
    )
    device = rig(config=config)
    monkeypatch.setattr(hub, "_serve", lambda link, request: None)
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    device.later(50.0)
    device.link.disconnect()
    device.later(1000.0)  # time without a connection does not count
    device.link.connect()
    device.settle()
    device.later(99.5)
    assert device.steps() == {"colours": "fetching"}
    device.later(0.5)
    assert outcomes(hub) == [(1, "failed", "no end of fetching in time: no new block within 100 s")]


def test_at_most_sixteen_blocks_are_unanswered(
    rig: Rigs, hub: HubDouble, bundle: Make, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = padded_onnx((models / "classifier.onnx").read_bytes(), 40 * blocks.BLOCK_BYTES)
    device = rig()
    made = bundle(data=data)
    digest = made.manifest.file("model").transfer.digest
    real, held = hub._serve, []

    def serve(link: Any, request: BlockRequest) -> None:
        held.append(request) if request.digest == digest else real(link, request)

    monkeypatch.setattr(hub, "_serve", serve)
    hub.send_all(device.link, hub.release(made, 1))
    device.settle()
    wanted = [index for request in held for index in blocks.indices_of(request.bitmap, 41)]
    assert wanted == list(range(16))
    device.later(5.0)  # unanswered for five seconds: asked for again
    assert len(held) == 2
    monkeypatch.setattr(hub, "_serve", real)
    for request in held:
        real(device.link, request)
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]


def test_a_broadcast_of_blocks_is_taken_without_being_asked(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = rig()
    made = bundle()
    real = hub._serve
    digest = made.manifest.file("model").transfer.digest

    def serve(link: Any, request: BlockRequest) -> None:
        if request.digest != digest:
            real(link, request)

    monkeypatch.setattr(hub, "_serve", serve)
    hub.send_all(device.link, hub.release(made, 1))
    device.settle()
    topic = topics.fleet_blob(digest)
    assert device.link.listening == {topic}
    block = Block(digest, 0, hub.block(digest, 0))
    device.link.send(topic, codec.encode(block, compress=False))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]
    assert device.link.listening == set()


def test_a_flood_of_repeated_blocks_ends_the_attempt(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    data = padded_onnx((models / "classifier.onnx").read_bytes(), 3 * blocks.BLOCK_BYTES)
    device = rig()
    made = bundle(data=data)
    digest = made.manifest.file("model").transfer.digest
    real = hub._serve
    monkeypatch.setattr(
        hub, "_serve", lambda link, r: None if r.digest == digest else real(link, r)
    )
    hub.send_all(device.link, hub.release(made, 1))
    device.settle()
    flood = codec.encode(Block(digest, 0, hub.block(digest, 0)), compress=False)
    for _ in range(30):
        device.link.send(topics.down("cam-1", "blocks"), flood)
    device.settle()
    assert outcomes(hub)[0][1] == "rejected"
    assert ("artifact block", "too-many-bytes") in refusals(hub)


def test_a_full_disk_fails_the_attempt_and_the_agent_goes_on(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots.os, "posix_fallocate", full)
    hub.send_all(device.link, hub.release(bundle("inverted.onnx", version="v2"), 2))
    device.settle()
    attempt, outcome, reason = outcomes(hub)[1]
    assert (attempt, outcome) == (2, "failed")
    assert "No space left on device" in reason
    assert device.engine.model("colours").predict(ROW).release == 1


# -- hostile messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["assignment", "blocks", "ack"])
@pytest.mark.parametrize(
    "payload",
    [
        b"\x00",
        b"\x07abc",
        b"\x01\x28\xb5\x2f\xfd" + bytes(20),
        b"\x00\xdb\xff\xff\xff\xff",  # a string of 4 GiB, declared
        b"\x00\xdd\xff\xff\xff\xff",  # an array of 4 G elements, declared
        b"\x00" + b"\x91" * 5000,  # nested beyond any depth
    ],
)
def test_a_malformed_message_is_refused_and_the_agent_goes_on(
    rig: Rigs, hub: HubDouble, bundle: Make, kind: str, payload: bytes
) -> None:
    device = rig()
    device.link.send(topics.down("cam-1", kind), payload)
    device.settle()
    what = {"assignment": "assignment", "blocks": "artifact block", "ack": "message"}[kind]
    assert refusals(hub) == [(what, "malformed")]
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]


def test_a_message_over_its_limit_is_refused_unread(rig: Rigs, hub: HubDouble) -> None:
    device = rig()
    device.link.send(topics.down("cam-1", "blocks"), bytes(codec.MAX_MESSAGE_BYTES + 1))
    device.settle()
    assert refusals(hub) == [("artifact block", "too-large")]


def test_the_same_refusal_is_reported_once_a_minute(rig: Rigs, hub: HubDouble) -> None:
    device = rig()
    for _ in range(50):
        device.link.send(topics.down("cam-1", "ack"), b"\x00")
    device.settle()
    assert len(refusals(hub)) == 1
    device.monotonic.now += 59.5
    device.link.send(topics.down("cam-1", "ack"), b"\x00")
    device.settle()
    assert len(refusals(hub)) == 1
    device.monotonic.now += 0.5
    device.link.send(topics.down("cam-1", "ack"), b"\x00")
    device.settle()
    assert len(refusals(hub)) == 2


def test_an_acknowledgement_for_another_store_deletes_nothing(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle(acknowledge=False)
    waiting = len(hub.reports)
    ack = Ack("another", [report.number for report in hub.reports])
    device.link.send(topics.down("cam-1", "ack"), codec.encode(ack))
    hub.reports.clear()
    device.monotonic.now += 5.0
    device.settle(acknowledge=False)
    assert len(hub.reports) == waiting


# -- reports -------------------------------------------------------------------------------------


def test_windows_and_consented_samples_reach_the_hub(
    rig: Rigs, hub: HubDouble, bundle: Make, tmp_path: Path
) -> None:
    from edgefleet_agent.config import SampleConsent
    from edgefleet_protocol.messages import Samples

    config = Config(
        store=str(tmp_path / "store"), board="generic-x86_64", samples=SampleConsent(True)
    )
    device = rig(config=config)
    policy = SamplePolicy("retraining", 5)
    hub.send_all(device.link, hub.release(bundle(), 1, window_rows=20, samples=policy))
    device.settle()
    model = device.engine.model("colours")
    for row in np.random.default_rng(1).normal(size=(20, 4)):
        answer = model.predict(row)
        assert model.feedback(answer.id, "red")
    device.settle()
    (window,) = hub.bodies(Window)
    assert (window.rows, window.errors, window.labelled) == (20, 0, 19)
    assert sum(window.predictions) == 20
    assert sum(window.latency_us) == 20
    assert len(window.psi) == 4
    (samples,) = hub.bodies(Samples)
    assert (samples.purpose, len(samples.labels), samples.columns) == (
        "retraining",
        5,
        ["a", "b", "c", "d"],
    )
    assert len(samples.rows) == 5 * 4 * 4


def test_without_consent_no_sample_leaves_the_device(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    from edgefleet_protocol.messages import Samples

    device = rig()
    policy = SamplePolicy("retraining", 5)
    hub.send_all(device.link, hub.release(bundle(), 1, window_rows=10, samples=policy))
    device.settle()
    model = device.engine.model("colours")
    for _ in range(20):
        model.feedback(model.predict(ROW).id, "red")
    device.settle()
    assert len(hub.bodies(Window)) == 2
    assert hub.bodies(Samples) == []


def test_state_is_sent_on_connect_on_change_and_every_heartbeat(rig: Rigs, hub: HubDouble) -> None:
    device = rig()
    device.settle()
    assert len(hub.states) == 1
    device.later(29.5)
    assert len(hub.states) == 1
    device.later(0.5)
    assert len(hub.states) == 2
    device.link.disconnect()
    device.link.connect()
    device.settle()
    assert [state.sequence for state in hub.states] == [1, 2, 3]
    assert {state.boot for state in hub.states} == {1}
    device.close()
    rig().settle()
    assert (hub.states[-1].boot, hub.states[-1].sequence) == (2, 1)


# -- death at every write ------------------------------------------------------------------------


class Death(BaseException):
    """The process ends here: nothing catches it and nothing runs after it."""


class DyingDisk:
    """Lets a number of durable writes through, then ends the process before or after the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.after = False
        self.writes = 0
        real = files.commit

        def commit(partial: Path, path: Path) -> None:
            self.writes += 1
            dying = self.left is not None and self.writes > self.left
            if dying and not self.after:
                raise Death
            real(partial, path)
            if dying:
                raise Death

        monkeypatch.setattr(files, "commit", commit)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[DyingDisk]:
    with monkeypatch.context() as patched:
        yield DyingDisk(patched)


def update_once(store: Path, hub: HubDouble, target: Any, image: Any, message: bytes) -> Rig:
    """Start the device and let it do everything that is assigned."""
    device = Rig(store, hub, surroundings={"try_candidate": lambda *_: Verdict([])})
    for topic, data in image:
        device.link.send(topic, data)
    device.link.send(topics.down("cam-1", "assignment"), message)
    device.settle()
    if target.confirm_rows:
        model = device.engine.model("colours")
        for _ in range(target.confirm_rows):
            model.predict(ROW)
        device.settle()
    return device


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("good", [True, False])
def test_a_device_that_dies_at_any_write_ends_where_an_undisturbed_one_does(
    tmp_path: Path, bundle: Make, disk: DyingDisk, after: bool, good: bool
) -> None:
    """Kill the process at each durable write of an update in turn; restart; compare the end."""
    first = bundle()
    second = bundle("classifier.tflite" if good else "brittle.onnx", version="v2")
    deaths = 0
    while True:
        disk.left = None
        hub = HubDouble()
        store = tmp_path / f"store-{deaths}"
        before = hub.release(first, 1)
        device = update_once(store, hub, before, hub.image_messages(), hub.assignment(before))
        device.close()
        target = hub.release(second, 2, confirm_rows=2 if good else 0)
        image, message = hub.image_messages(), hub.assignment(target)
        disk.left, disk.after, disk.writes = deaths, after, 0
        try:
            update_once(store, hub, target, image, message).close()
            died = False
        except Death:
            died = True
        disk.left = None
        device = update_once(store, hub, target, image, message)
        assert [slot.release for slot in device.state.serving] == [2], f"after write {deaths}"
        assert device.steps() == {"colours": str(Step.CONFIRMED)}
        assert {o[:2] for o in outcomes(hub)} == {(1, "confirmed"), (2, "confirmed")}
        assert list((store / "parts").iterdir()) == []
        journal = device.engine.attempts.journals["colours"]
        assert journal.floor == 2
        assert journal.previous is not None
        device.close()
        if not died:
            break
        deaths += 1
    # boots, sequence, five steps, manifest, two or three files, and the result that was reported
    assert deaths >= 9
