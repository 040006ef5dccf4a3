"""A download: what is asked for, what is taken, what it may cost, and where it goes on."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent.config import Config, Network, Storage
from edgefleet_agent.downloading import storage
from edgefleet_agent.downloading.fetching import (
    FIRST_RETRY_S,
    LAST_RETRY_S,
    MAX_UNAVAILABLE,
    WINDOW,
    Fetch,
    Opened,
)
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.engine import MAX_WAIT_S
from edgefleet_agent.errors import StoreError
from edgefleet_agent.testing import Bundle, HubDouble, Rig, padded_onnx
from edgefleet_agent.updating.journal import Assigned, Order
from edgefleet_protocol import blocks
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.manifest import Manifest
from edgefleet_protocol.messages import Block, BlockRequest, Result, Slot

BLOCK = blocks.BLOCK_BYTES
Make = Callable[..., Bundle]


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    made = Slots(tmp_path)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def large(bundle: Make, models: Path) -> Bundle:
    """A bundle whose model takes 25 blocks that do not compress."""
    model = (models / "classifier.onnx").read_bytes()
    return bundle(data=padded_onnx(model, 25 * BLOCK - 1000))


def assigned(made: Bundle, attempt: int = 1) -> Assigned:
    slot = Slot("colours", "v1", attempt, "x", made.digest)
    return Assigned(slot, "onnxruntime", len(made.data), attempt, Order(1, 0, 1))


def begun(slots: Slots, made: Bundle, **options: object) -> Fetch:
    fetch = Fetch(slots, assigned(made), lambda _: None, 0.0, **options)  # type: ignore[arg-type]  # as named
    fetch.take_opened(fetch.open(), 0.0)
    return fetch


def content(made: Bundle, digest: str) -> bytes:
    return made.data if digest == made.digest else made.blobs[digest]


def piece(made: Bundle, digest: str, index: int) -> Block:
    data = content(made, digest)
    return Block(digest, index, data[index * BLOCK : (index + 1) * BLOCK])


def answer(fetch: Fetch, made: Bundle, now: float = 0.0, **limits: int) -> list[int]:
    """Serve one request; return what was asked for."""
    request = fetch.request(now, **limits)
    if request is None:
        return []
    count = blocks.block_count(len(content(made, request.digest)))
    asked = list(blocks.indices_of(request.bitmap, count))
    for index in asked:
        assert fetch.receive(piece(made, request.digest, index), now) is None
    if fetch.opening:
        fetch.take_opened(fetch.open(), now)
    return asked


def finish(fetch: Fetch, made: Bundle) -> list[str]:
    """Serve everything; return the digests in the order in which they were fetched."""
    order = []
    while not fetch.done:
        assert fetch.digest
        order.append(fetch.digest)
        assert answer(fetch, made)
    return list(dict.fromkeys(order))


def to_model(slots: Slots, large: Bundle, **options: object) -> Fetch:
    """Return a download whose manifest is there, so that the model's blocks are next."""
    slots.save_manifest(large.digest, large.data)
    return begun(slots, large, **options)


def test_the_manifest_comes_first_then_every_file_and_it_can_be_installed(
    slots: Slots, large: Bundle
) -> None:
    fetch = begun(slots, large)
    assert fetch.total_bytes == len(large.data)
    order = finish(fetch, large)
    assert order == [large.digest, *(f.transfer.digest for f in large.manifest.files)]
    assert fetch.total_bytes == fetch.held_bytes == fetch.fetched_bytes
    for file in large.manifest.files:
        slots.install(file)
    assert slots.is_whole(large.digest)


def test_opening_reads_and_writes_and_asking_waits_for_it(slots: Slots, large: Bundle) -> None:
    fetch = Fetch(slots, assigned(large), lambda _: None, 0.0)
    assert fetch.opening
    assert not fetch.done
    assert fetch.request(0.0) is None
    assert fetch.next_at() is None
    fetch.take_opened(fetch.open(), 0.0)
    assert not fetch.opening
    request = fetch.request(0.0)
    assert request is not None
    for index in range(blocks.block_count(len(large.data))):
        fetch.receive(piece(large, large.digest, index), 0.0)
    assert fetch.opening  # the files of the manifest
    assert not fetch.done
    assert not slots.has(large.digest)  # nothing was written on the thread that takes blocks
    fetch.take_opened(fetch.open(), 0.0)
    assert slots.has(large.digest)


def test_a_window_is_asked_for_and_then_half_a_window_at_a_time(
    slots: Slots, large: Bundle
) -> None:
    fetch = to_model(slots, large)
    request = fetch.request(0.0)
    assert request is not None
    assert list(blocks.indices_of(request.bitmap, 25)) == list(range(WINDOW))
    assert fetch.asked_bytes == WINDOW * BLOCK
    for index in range(WINDOW // 2 - 1):
        fetch.receive(piece(large, request.digest, index), 0.0)
        assert fetch.request(0.0) is None
    fetch.receive(piece(large, request.digest, WINDOW // 2 - 1), 0.0)
    assert answer(fetch, large) == list(range(WINDOW, WINDOW + WINDOW // 2))


def test_what_is_not_answered_is_asked_for_again_ever_more_slowly(
    slots: Slots, large: Bundle
) -> None:
    fetch = to_model(slots, large)
    asked, now = [], 0.0
    for _ in range(7):
        assert fetch.request(now) is not None
        asked.append(now)
        due = fetch.next_at()
        assert due is not None
        assert fetch.request(due - 0.001) is None
        now = due
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps == [FIRST_RETRY_S, 10.0, 20.0, 40.0, LAST_RETRY_S, LAST_RETRY_S]
    fetch.reconnected(now)
    assert fetch.request(now) is not None
    assert fetch.next_at() == now + FIRST_RETRY_S


def test_no_more_is_asked_for_than_the_allowance_and_waiting_is_told(
    slots: Slots, large: Bundle
) -> None:
    fetch = to_model(slots, large)
    assert fetch.request(0.0, allowance_bytes=BLOCK - 1) is None
    assert fetch.waiting
    assert fetch.next_at() is None
    assert answer(fetch, large, allowance_bytes=3 * BLOCK - 1) == [0, 1]
    assert not fetch.waiting
    request = fetch.request(0.0, allowance_bytes=BLOCK)
    assert request is not None
    assert fetch.asked_bytes == BLOCK
    assert fetch.request(0.0, allowance_bytes=BLOCK) is None  # it is asked for already
    assert not fetch.waiting
    while answer(fetch, large, now=FIRST_RETRY_S):
        pass
    assert fetch.done


def test_a_short_last_block_fits_a_small_allowance(slots: Slots, bundle: Make) -> None:
    made = bundle()
    fetch = begun(slots, made)
    assert fetch.request(0.0, allowance_bytes=len(made.data) - 1) is None
    assert answer(fetch, made, allowance_bytes=len(made.data)) == [0]


def test_an_order_bounds_what_is_received(slots: Slots, large: Bundle) -> None:
    missing = large.manifest.transfer_bytes
    slots.save_manifest(large.digest, large.data)
    fetch = to_model(slots, large, max_bytes=missing)
    fetch.close()
    with pytest.raises(RefusedError, match=f"{missing} bytes are missing") as refusal:
        to_model(slots, large, max_bytes=missing - 1)
    assert refusal.value.reason == "too-many-bytes"


def test_a_flood_ends_the_attempt(slots: Slots, large: Bundle) -> None:
    fetch = to_model(slots, large)
    assert fetch.digest
    block = piece(large, fetch.digest, 0)
    allowed = 2 * fetch.total_bytes + WINDOW * BLOCK
    for _ in range(allowed // BLOCK):
        fetch.receive(block, 0.0)
    with pytest.raises(RefusedError, match="received") as refusal:
        fetch.receive(block, 0.0)
    assert refusal.value.reason == "too-many-bytes"


def test_the_third_wrong_answer_for_a_block_ends_the_attempt(slots: Slots, large: Bundle) -> None:
    fetch = to_model(slots, large)
    assert fetch.digest
    wrong = Block(fetch.digest, 0, bytes(BLOCK))
    for _ in range(2):
        assert "differs from its signed digest" in (fetch.receive(wrong, 0.0) or "")
    with pytest.raises(RefusedError) as refusal:
        fetch.receive(wrong, 0.0)
    assert refusal.value.reason == "hash-mismatch"


def test_a_hub_that_cannot_serve_is_asked_a_few_times(slots: Slots, large: Bundle) -> None:
    fetch = to_model(slots, large)
    for count in range(1, MAX_UNAVAILABLE):
        fetch.unavailable("no such file", 0.0)
        assert fetch.next_at() == FIRST_RETRY_S * count
    with pytest.raises(StoreError, match="cannot serve"):
        fetch.unavailable("no such file", 0.0)


def test_an_interrupted_download_goes_on_where_it_stopped(slots: Slots, large: Bundle) -> None:
    first = to_model(slots, large)
    asked = answer(first, large)
    first.close()
    again = to_model(slots, large)
    assert again.held_bytes == len(large.data) + len(asked) * BLOCK
    assert answer(again, large) == list(range(WINDOW, 25))


def test_a_superseded_download_is_kept_and_goes_on_when_its_version_comes_back(
    slots: Slots, large: Bundle, bundle: Make
) -> None:
    first = to_model(slots, large)
    asked = answer(first, large)
    first.close()
    assert slots.collect([]) == []  # no journal needs it, and there is room
    other = bundle(version="v2", rows=65)
    finish(begun(slots, other), other)
    again = begun(slots, large)  # its manifest is still there too
    assert again.held_bytes == len(large.data) + len(asked) * BLOCK
    again.close()
    assert slots.collect([], keep_leftovers=False)
    assert list(slots._parts.iterdir()) == []


def test_a_file_that_another_version_has_is_not_fetched_again(
    slots: Slots, large: Bundle, bundle: Make
) -> None:
    finish(begun(slots, large), large)
    for file in large.manifest.files:
        slots.install(file)
    model = slots.path(large.manifest.file("model").digest).read_bytes()
    other = bundle(data=model, version="v2", rows=65)
    order = finish(begun(slots, other), other)
    assert large.manifest.file("model").transfer.digest not in order


def test_room_is_looked_for_before_the_first_block_of_a_file(slots: Slots, large: Bundle) -> None:
    seen: list[Manifest] = []

    def full(made: Manifest) -> list[str]:
        seen.append(made)
        raise storage.NoRoomError("no room: 3.1 MiB more are needed")

    fetch = Fetch(slots, assigned(large), lambda _: None, 0.0, room=full)
    fetch.take_opened(fetch.open(), 0.0)
    while not fetch.opening:
        request = fetch.request(0.0)
        assert request is not None
        for index in blocks.indices_of(request.bitmap, 1 << 10):
            fetch.receive(piece(large, request.digest, index), 0.0)
    with pytest.raises(storage.NoRoomError):
        fetch.open()
    assert seen == [large.manifest]
    assert list(slots._parts.iterdir()) == []


def test_a_manifest_for_another_device_is_not_kept(slots: Slots, bundle: Make) -> None:
    made = bundle()

    def refuse(_: Manifest) -> None:
        raise RefusedError("wrong-board", "not for this board")

    fetch = Fetch(slots, assigned(made), refuse, 0.0)
    fetch.take_opened(fetch.open(), 0.0)
    assert fetch.request(0.0)
    fetch.receive(piece(made, made.digest, 0), 0.0)
    with pytest.raises(RefusedError, match="not for this board"):
        fetch.open()
    assert not slots.has(made.digest)


def test_a_manifest_that_came_out_wrong_is_asked_for_again(slots: Slots, bundle: Make) -> None:
    made = bundle()
    fetch = begun(slots, made)
    assert fetch.request(0.0)
    wrong = np.frombuffer(made.data, np.uint8) ^ 1
    assert fetch.receive(Block(made.digest, 0, wrong.tobytes()), 0.0)
    assert not fetch.opening
    finish(fetch, made)


def test_an_empty_manifest_is_refused_and_a_huge_one_never_asked_for(
    slots: Slots, bundle: Make
) -> None:
    made = bundle()
    slot = Slot("colours", "v1", 1, "x", "0" * 64)
    empty = Fetch(slots, Assigned(slot, "onnxruntime", 0, 1, Order(1, 0, 1)), lambda _: None, 0.0)
    empty.take_opened(empty.open(), 0.0)
    assert empty.opening
    with pytest.raises(MalformedError, match="not a bundle manifest"):
        empty.open()
    huge = Assigned(slot, "onnxruntime", (4 << 20) + 1, 1, Order(1, 0, 1))
    with pytest.raises(RefusedError, match="manifest of 4194305 bytes; at most 4194304"):
        Fetch(slots, huge, lambda _: None, 0.0).open()
    assert made.digest


def test_an_opening_that_is_called_off_leaves_no_open_file(slots: Slots, large: Bundle) -> None:
    slots.save_manifest(large.digest, large.data)
    fetch = Fetch(slots, assigned(large), lambda _: None, 0.0)
    slots.open_part(large.manifest.file("model")).close()  # so that there is something to hash

    class CalledOffError(Exception):
        pass

    def heed() -> None:
        raise CalledOffError

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CalledOffError):
        fetch.open(heed)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_was_opened_for_a_superseded_attempt_can_be_let_go(
    slots: Slots, large: Bundle
) -> None:
    slots.save_manifest(large.digest, large.data)
    opened = Fetch(slots, assigned(large), lambda _: None, 0.0).open()
    assert isinstance(opened, Opened)
    assert set(opened.parts) == {file.transfer.digest for file in large.manifest.files}
    held = len(list(Path("/proc/self/fd").iterdir()))
    opened.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == held - len(opened.parts)


def test_an_attempt_waits_for_its_byte_budget_and_says_so_and_does_not_stall(
    rig: Callable[..., Rig], hub: HubDouble, large: Bundle, tmp_path: Path
) -> None:
    budget = 6 * BLOCK
    config = Config(
        store=str(tmp_path / "store"),
        board="generic-x86_64",
        network=Network("metered", budget, 0),
    )
    device = rig(config=config)
    hub.send_all(device.link, hub.release(large, 1))
    device.settle()
    device.later(MAX_WAIT_S)  # an engine turns at least so often
    for _ in range(3):
        device.later(config.budgets.fetch_stall_s + 1.0)
        (attempt,) = device.state.attempts
        assert attempt.step == "fetching"
        assert attempt.reason.startswith("waits for its byte budget until ")
    asked = sum(
        int.from_bytes(request.bitmap, "little").bit_count()
        for request in hub.requests
        if isinstance(request, BlockRequest)
    )
    assert asked == 6  # the manifest's one, and five of the model's


def test_a_version_that_does_not_fit_fails_before_its_first_block_with_the_figures(
    rig: Callable[..., Rig], hub: HubDouble, large: Bundle, tmp_path: Path
) -> None:
    config = Config(
        store=str(tmp_path / "store"), board="generic-x86_64", storage=Storage(2 * 1024 * 1024)
    )
    device = rig(config=config)
    hub.send_all(device.link, hub.release(large, 1))
    device.settle()
    (result,) = hub.bodies(Result)
    assert result.outcome == "failed"
    assert "no room: 3.1 MiB more are needed" in result.reason
    assert "of the 2.0 MiB it may take" in result.reason
    asked = {request.digest for request in hub.requests if isinstance(request, BlockRequest)}
    assert asked == {large.digest}


def test_a_previous_release_that_gave_its_room_is_not_named_any_more(
    rig: Callable[..., Rig], hub: HubDouble, bundle: Make, models: Path, tmp_path: Path
) -> None:
    model = (models / "classifier.onnx").read_bytes()
    config = Config(
        store=str(tmp_path / "store"), board="generic-x86_64", storage=Storage(7 * BLOCK * 8)
    )
    device = rig(config=config)
    for release in (1, 2, 3):
        made = bundle(data=padded_onnx(model, 20 * BLOCK, release), version=f"v{release}")
        hub.send_all(device.link, hub.release(made, release))
        device.settle()
        (serving,) = device.state.serving
        assert serving.release == release
    assert [slot.release for slot in device.state.previous] == [2]
    made = bundle(data=padded_onnx(model, 30 * BLOCK, 4), version="v4")
    hub.blobs.clear()  # the fourth is ordered, and cannot be fetched
    ordered = hub.release(made, 4)
    hub.blobs = {made.digest: made.data}
    hub.send_all(device.link, ordered)
    device.settle()
    assert device.state.serving[0].release == 3
    assert device.state.previous == []
