"""Who signs what: drafts, thresholds, delegations, and that no half of a change goes out."""

import json
import time
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, TargetFile

from edgefleet_cloud.database.models import AuditEntry, Incident
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, DamagedError, InvalidError, NotFoundError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories import drafts, exchange, founding, layout, status
from edgefleet_cloud.trust.repositories.founding import Holders, Plan
from edgefleet_cloud.trust.repositories.reminder import PAUSE_S, Reminder
from edgefleet_cloud.trust.repositories.testing import founded, signer
from edgefleet_protocol.trust import target_path
from tests.trust.ceremony import Device, Fleet, accepted, listed

OLD, NEW = ("digits", 1), ("digits", 2)
NEW_PATH = target_path("digits", 2, "onnx-fp32")


@pytest.fixture
def fleet(tmp_path: Path, database: Database) -> Fleet:
    made = Fleet.of(founded(tmp_path / "hub", time.time, {"authorities": ["A"]}), database)
    made.release(OLD)
    return made


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    return fleet.device(tmp_path / "device")


@pytest.fixture
def owned(fleet: Fleet) -> Fleet:
    """Give the model an owner, two of two."""
    for name in ("ann", "bob"):
        fleet.founded.signers[name] = signer(name)
    delegate(fleet)
    fleet.sign("targets-1", "targets-2", "ann", "bob")
    return fleet


def delegate(fleet: Fleet) -> None:
    keys = [fleet.founded.signers[name].public_key for name in ("ann", "bob")]
    fleet.ceremonies.delegate("vision", ["digits"], keys, 2)


# --- drafts -----------------------------------------------------------------------------------


def test_a_draft_goes_into_force_with_the_last_signature_that_it_needs_and_not_before(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["A", "B"]})
    assert fleet.sign("targets-2") == []
    held = fleet.founded.images.held().targets
    assert held.signed.unrecognized_fields["edgefleet"]["authorities"] == ["A"]
    assert fleet.sign("targets-3") == [layout.TARGETS]
    held = fleet.founded.images.held().targets
    assert held.signed.unrecognized_fields["edgefleet"]["authorities"] == ["A", "B"]


def test_drafts_and_their_signatures_survive_a_restart(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    fleet.sign("targets-1")
    fleet.founded.reopen()
    again = Fleet.of(fleet.founded, fleet.ceremonies._database)
    assert again.sign("targets-2") == [layout.TARGETS]


def test_of_two_holders_who_hand_in_at_once_neither_is_lost(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    images, people = fleet.founded.images, fleet.founded.signers
    one, other = (images.drafts()[layout.TARGETS] for _ in range(2))
    one.sign(people["targets-1"], append=True)
    other.sign(people["targets-2"], append=True)
    assert not images.take(layout.TARGETS, one)
    assert images.take(layout.TARGETS, other)
    with pytest.raises(ConflictError, match="has just changed"):
        images.take(layout.TARGETS, other)


def test_the_same_holder_counts_once(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    fleet.sign("targets-1")
    draft = fleet.ceremonies.drafts()[layout.TARGETS]
    with pytest.raises(InvalidError, match="no new valid signature"):
        fleet.ceremonies.sign(layout.TARGETS, drafts.payload_of(draft))
    assert fleet.sign("targets-1") == []


def test_a_signature_of_a_key_that_does_not_count_is_refused(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    draft = fleet.ceremonies.drafts()[layout.TARGETS]
    draft.sign(fleet.founded.signers["root-1"], append=True)
    draft.sign(signer("stranger"), append=True)
    with pytest.raises(InvalidError, match="no new valid signature"):
        fleet.ceremonies.sign(layout.TARGETS, drafts.payload_of(draft))


def test_a_forged_signature_under_the_id_of_a_holder_is_refused(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    draft = fleet.ceremonies.drafts()[layout.TARGETS]
    forged = signer("thief").sign(draft.signed_bytes)
    forged.keyid = fleet.founded.signers["targets-1"].public_key.keyid
    draft.signatures[forged.keyid] = forged
    with pytest.raises(InvalidError, match="no new valid signature"):
        fleet.ceremonies.sign(layout.TARGETS, drafts.payload_of(draft))
    assert fleet.sign("targets-2") == []


def test_a_signature_over_a_draft_that_has_changed_since_is_refused(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    before = fleet.ceremonies.drafts()[layout.TARGETS]
    before.sign(fleet.founded.signers["targets-1"], append=True)
    fleet.ceremonies.set_fleet({"authorities": ["C"]})
    with pytest.raises(ConflictError, match="has changed since it was exported"):
        fleet.ceremonies.sign(layout.TARGETS, drafts.payload_of(before))


def test_changing_a_draft_takes_the_signatures_off_it(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    fleet.sign("targets-1")
    fleet.ceremonies.set_fleet({"authorities": ["C"]})
    assert fleet.sign("targets-2") == []


def test_a_discarded_draft_is_gone(fleet):
    fleet.ceremonies.set_fleet({"authorities": ["B"]})
    fleet.ceremonies.discard(layout.TARGETS)
    assert fleet.ceremonies.drafts() == {}
    with pytest.raises(NotFoundError):
        fleet.ceremonies.discard(layout.TARGETS)


@pytest.mark.parametrize("file", [b"", b"{}", b"not json"])
def test_what_is_no_signed_draft_is_refused(fleet, file):
    fleet.ceremonies.renew(layout.TARGETS)
    with pytest.raises(InvalidError, match="cannot be read"):
        fleet.ceremonies.sign(layout.TARGETS, file)


def test_every_step_is_in_the_log_of_decisions(fleet, database):
    fleet.ceremonies.renew(layout.TARGETS)
    fleet.sign("targets-1", "targets-2")
    with database.read() as session:
        lines = [json.loads(row.line) for row in session.query(AuditEntry).order_by("number")]
    assert [line["action"] for line in lines] == [
        "metadata.renew",
        "metadata.sign",
        "metadata.sign",
    ]
    assert [line["after"]["in_force"] for line in lines[1:]] == [False, True]


# --- delegations ------------------------------------------------------------------------------


def test_an_owner_takes_over_only_with_everything_that_was_listed(fleet, device):
    for name in ("ann", "bob"):
        fleet.founded.signers[name] = signer(name)
    delegate(fleet)
    fleet.sign("targets-1", "targets-2", "ann")
    # Released meanwhile by the hub: the owner's first file has to list it too.
    fleet.release(OLD, NEW)
    assert fleet.sign("bob") == []
    assert fleet.founded.images.owners() == {}
    assert accepted(device.take(fleet.assignment(*NEW, sequence=1))) == [NEW]
    assert fleet.sign("ann") == [f"image.{layout.owner_role('vision')}"]
    assert fleet.founded.images.owners() == {"digits": "owner-vision"}
    assert accepted(device.take(fleet.assignment(*NEW, sequence=2))) == [NEW]


def test_a_release_of_an_owner_is_listed_once_the_owner_has_signed(owned, device):
    owned.release(OLD, NEW)
    assert not owned.founded.images.lists(NEW_PATH)
    assert owned.sign("ann") == []
    assert not owned.founded.images.lists(NEW_PATH)
    assert owned.sign("bob") == ["image.owner-vision"]
    assert owned.founded.images.lists(NEW_PATH)
    assert accepted(device.take(owned.assignment(*NEW, sequence=1))) == [NEW]


def test_the_hub_by_itself_can_list_nothing_for_an_owner(owned, device):
    """The hub's own role is not asked about the owner's models, whatever it lists."""
    images = owned.founded.images
    path, entry = listed(*NEW)
    forged = TargetFile(entry.length, {"sha256": entry.digest}, path)
    images._write_releases({path: forged}, images.held().targets)
    images._next_snapshot()
    device.take(owned.assignment(*NEW, sequence=1))
    assert device.trust.sequence == 0


def test_what_an_owner_is_signing_stays_still_while_more_is_released(owned):
    owned.release(OLD, NEW)
    owned.sign("ann")
    owned.release(OLD, NEW, ("digits", 3))
    assert owned.sign("bob") == ["image.owner-vision"]
    assert owned.founded.images.lists(NEW_PATH)
    # The next one is drafted with the hub's next round.
    owned.release(OLD, NEW, ("digits", 3))
    assert owned.sign("ann", "bob") == ["image.owner-vision"]
    assert owned.founded.images.lists(target_path("digits", 3, "onnx-fp32"))


def test_other_models_stay_with_the_hub(owned):
    owned.release(OLD, ("iris", 1))
    assert owned.founded.images.lists(target_path("iris", 1, "onnx-fp32"))


def test_a_model_has_one_owner(owned):
    other = signer("eve").public_key
    with pytest.raises(ConflictError, match="'digits' belongs to owner-vision already"):
        owned.ceremonies.delegate("other", ["digits"], [other], 1)


@pytest.mark.parametrize(
    ("owner", "models", "threshold"),
    [
        ("A b", ["digits"], 1),
        ("vision", [], 1),
        ("vision", ["digits"], 2),
        ("vision", ["digits"], 0),
    ],
)
def test_a_delegation_that_could_never_work_is_refused(fleet, owner, models, threshold):
    with pytest.raises(InvalidError):
        fleet.ceremonies.delegate(owner, models, [signer("ann").public_key], threshold)
    assert fleet.ceremonies.drafts() == {}


def test_an_owner_that_is_removed_leaves_its_models_to_the_hub(owned, device):
    owned.ceremonies.undelegate("vision")
    assert owned.sign("targets-2", "targets-3") == [layout.TARGETS]
    assert owned.founded.images.owners() == {}
    assert "owner-vision" not in owned.founded.images.metadata()
    owned.release(OLD, NEW)
    assert accepted(device.take(owned.assignment(*NEW, sequence=1))) == [NEW]


def test_an_owner_that_loses_a_key_has_its_bundles_signed_again_by_the_others(owned, device):
    eve = signer("eve")
    owned.ceremonies.rotate("ann", eve.public_key)
    assert set(owned.ceremonies.drafts()) == {layout.TARGETS, "image.owner-vision"}
    assert owned.sign("targets-1", "targets-2") == []
    assert owned.sign("bob", eve) == ["image.owner-vision"]
    assert owned.ceremonies.drafts() == {}
    assert accepted(device.take(owned.assignment(*OLD, sequence=1))) == [OLD]


# --- publication ------------------------------------------------------------------------------


@pytest.mark.parametrize("written", range(8))
def test_a_hub_that_dies_at_any_file_of_a_ceremony_is_whole_again(
    tmp_path, database, monkeypatch, written
):
    fleet = Fleet.of(founded(tmp_path / "hub", time.time), database)
    fleet.release(OLD)
    device = fleet.device(tmp_path / "device")
    device.take(fleet.assignment(*OLD, sequence=1))
    fleet.ceremonies.rotate("targets-1", signer("targets-4").public_key)
    fleet.ceremonies.rotate("image.online")
    fleet.sign("root-1", "root-2", "targets-2")
    present = fleet.ceremonies.drafts()
    assert set(present) == {layout.IMAGE_ROOT, layout.TARGETS}
    last = present[layout.TARGETS]
    last.sign(fleet.founded.signers["targets-3"], append=True)
    real, calls = durable.write, []

    def dying(path: Path, data: bytes, *, mode: int) -> None:
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(path.name)
        real(path, data, mode=mode)

    monkeypatch.setattr(durable, "write", dying)
    try:
        fleet.ceremonies.sign(layout.TARGETS, drafts.payload_of(last))
    except KeyboardInterrupt:
        assert len(calls) == written
    else:
        assert written >= 6, calls
    monkeypatch.setattr(durable, "write", real)
    fleet.founded.reopen()
    fleet.release(OLD)
    again = Fleet.of(fleet.founded, database)
    if written == 0:
        assert again.sign("targets-3") == [layout.TARGETS]
    assert again.ceremonies.drafts() == {}
    assert len(fleet.founded.images.held().image_root.signed.roles["targets"].keyids) == 3
    assert accepted(device.take(fleet.assignment(*OLD, sequence=2))) == [OLD]


def test_a_root_that_names_a_key_which_the_hub_does_not_hold_waits_for_the_key(fleet):
    foreign = signer("kms")
    with pytest.raises(InvalidError, match="name its URI in the setting online_keys first"):
        fleet.ceremonies.rotate("image.snapshot", foreign.public_key)


def test_targets_that_the_root_does_not_vouch_for_stop_the_hub(fleet):
    path = fleet.founded.home / "images" / "targets.json"
    file = Metadata.from_bytes(path.read_bytes())
    file.signatures.popitem()
    path.write_bytes(drafts.payload_of(file))
    with pytest.raises(DamagedError, match="does not fit together"):
        fleet.founded.reopen()


def test_a_round_without_news_judges_no_signature_again(fleet, monkeypatch):
    fleet.ceremonies.renew(layout.TARGETS)
    fleet.release(OLD)

    def judged(*_arguments: object) -> None:
        raise AssertionError("judged again")

    monkeypatch.setattr(drafts, "choose", judged)
    fleet.release(OLD)
    assert not fleet.founded.images.refresh()
    with pytest.raises(AssertionError, match="judged again"):
        fleet.release(OLD, NEW)


# --- status and exchange ----------------------------------------------------------------------


def test_status_says_whose_signatures_are_missing_and_what_changes(fleet):
    fleet.ceremonies.rotate("root-1", signer("root-4").public_key)
    fleet.sign("root-2")
    images, director = fleet.founded.images, fleet.founded.director
    found = status.status(images, director, fleet.founded.home, time.time())
    (first, second) = found.drafts
    assert (first.name, second.name) == (layout.DIRECTOR_ROOT, layout.IMAGE_ROOT)
    assert first.waits == "1 of root-1, root-3; 1 of root-3, root-4"
    assert any(line.startswith("root: key ") and line.endswith("added") for line in first.changes)
    assert any("called 'root-4'" in line for line in first.changes)


@pytest.mark.parametrize(("left", "warned"), [(-1.0, True), (0.0, True), (1.0, False)])
def test_what_people_sign_is_asked_for_when_a_quarter_of_its_life_is_left(fleet, left, warned):
    images, director = fleet.founded.images, fleet.founded.director
    (role, *_) = status.status(images, director, fleet.founded.home, time.time()).roles
    at = role.expires_at - layout.RENEWAL_DUE_S + (left * -1)
    found = status.status(images, director, fleet.founded.home, at)
    assert any("edgefleet trust renew image.root" in line for line in found.warnings) is warned


def test_a_renewed_file_warns_no_more_and_lives_longer(tmp_path, database):
    now = [time.time()]
    fleet = Fleet.of(founded(tmp_path / "hub", lambda: now[0]), database)
    now[0] += layout.OFFLINE_LIFE_S - layout.RENEWAL_DUE_S + 60
    images, director = fleet.founded.images, fleet.founded.director
    warned = status.status(images, director, tmp_path, now[0]).warnings
    assert len(warned) == 3
    for name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT, layout.TARGETS):
        fleet.ceremonies.renew(name)
    fleet.sign("root-1", "root-2", "targets-1", "targets-2")
    assert status.status(images, director, tmp_path, now[0]).warnings == []


def test_offline_keys_that_lie_with_the_hub_are_warned_of(fleet):
    (fleet.founded.home / "offline-keys").mkdir()
    images, director = fleet.founded.images, fleet.founded.director
    found = status.status(images, director, fleet.founded.home, time.time())
    assert [w for w in found.warnings if "move the folder away" in w]


def test_an_export_that_was_tampered_with_is_not_signed(fleet):
    files = exchange.export(fleet.founded.images, fleet.founded.director)
    root = files["metadata/1.root.json"].replace(b'"threshold":2', b'"threshold":1', 1)
    with pytest.raises(DamagedError, match="cannot be trusted"):
        exchange.lay_out(files | {"metadata/1.root.json": root})
    top = Metadata.from_bytes(files["metadata/1.targets.json"])
    top.signatures.popitem()
    with pytest.raises(DamagedError, match="targets lacks signatures"):
        exchange.lay_out(files | {"metadata/1.targets.json": drafts.payload_of(top)})


@pytest.mark.parametrize("name", ["../x.json", "drafts/../../x.json", "/etc/x.json", "keys/x.json"])
def test_an_export_never_leaves_its_folder(tmp_path, name):
    with pytest.raises(InvalidError, match="is no file of an export"):
        exchange.write(tmp_path / "desk", {name: b"{}"})


# --- founding ---------------------------------------------------------------------------------


def test_a_founding_waits_until_enough_holders_have_signed(tmp_path):
    people = {name: signer(name) for name in ("r1", "r2", "t1")}
    public = {name: made.public_key for name, made in people.items()}
    plan = Plan(Holders([public["r1"], public["r2"]], 2), Holders([public["t1"]], 1))
    files = founding.first(tmp_path, plan, time.time())
    drafts.sign(files, drafts.Held(), [people["r1"], people["t1"]])
    with pytest.raises(ConflictError, match=r"director.root: 1 of r2; image.root: 1 of r2"):
        founding.put_in_place(tmp_path, files)
    drafts.sign(files, drafts.Held(), [people["r2"]])
    founding.put_in_place(tmp_path, files)
    assert founding.is_founded(tmp_path)
    with pytest.raises(ConflictError, match="is founded already"):
        founding.first(tmp_path, plan, time.time())


def test_an_interrupted_founding_begins_again(tmp_path, monkeypatch):
    real, calls = durable.write, []

    def dying(path: Path, data: bytes, *, mode: int) -> None:
        if path.name == "targets.json" and not calls:
            calls.append(path)
            raise KeyboardInterrupt
        real(path, data, mode=mode)

    monkeypatch.setattr(durable, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        founding.by_hub(tmp_path, {}, time.time())
    assert not founding.is_founded(tmp_path)
    founding.by_hub(tmp_path, {}, time.time())
    founded(tmp_path, time.time).images.sync({})


@pytest.mark.parametrize(("count", "threshold"), [(2, 3), (0, 0), (1, 0)])
def test_holders_that_could_never_sign_are_refused(tmp_path, count, threshold):
    keys = [signer(str(n)).public_key for n in range(count)]
    with pytest.raises(InvalidError, match="cannot sign"):
        founding.first(tmp_path, Plan(Holders(keys, threshold), Holders(keys, 1)), time.time())


def test_a_holder_who_is_named_twice_is_refused(tmp_path):
    key = signer("ann").public_key
    with pytest.raises(InvalidError, match="no key twice"):
        founding.first(tmp_path, Plan(Holders([key, key], 2), Holders([key], 1)), time.time())


# --- reminders --------------------------------------------------------------------------------


def test_what_ends_soon_is_one_open_incident_until_it_is_renewed(tmp_path, database):
    now = [time.time()]
    fleet = Fleet.of(founded(tmp_path / "hub", lambda: now[0]), database)
    images, director = fleet.founded.images, fleet.founded.director
    reminder = Reminder(images, director, database, tmp_path, lambda: now[0])

    def open_incidents() -> list[str]:
        reminder.tick()
        with database.read() as session:
            rows = session.query(Incident).filter(Incident.closed_at.is_(None))
            return [row.text for row in rows]

    assert open_incidents() == []
    now[0] += layout.OFFLINE_LIFE_S - layout.RENEWAL_DUE_S + 1
    (text,) = open_incidents()
    assert text.count("edgefleet trust renew") == 3
    assert open_incidents() == [text]
    for name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT, layout.TARGETS):
        fleet.ceremonies.renew(name)
    fleet.sign("root-1", "root-2", "targets-1", "targets-2")
    now[0] += PAUSE_S - 1
    assert open_incidents() == [text]
    now[0] += 1
    assert open_incidents() == []


def test_keys_that_lie_with_the_hub_are_said_at_its_start_and_are_no_incident(
    tmp_path, database, caplog
):
    fleet = founded(tmp_path / "hub", time.time)
    (tmp_path / "hub" / "offline-keys").mkdir()
    Reminder(fleet.images, fleet.director, database, tmp_path / "hub", time.time).tick()
    assert "the offline keys are still in" in caplog.text
    with database.read() as session:
        assert session.query(Incident).all() == []
