"""What time it is for a device whose clock is wrong by years, and whose word counts."""

import os
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tuf.api.metadata import Metadata, Root

from edgefleet_agent import files
from edgefleet_agent.testing import Clock, Repository
from edgefleet_agent.trusting import refresh, tufclient
from edgefleet_agent.trusting.timekeeping import (
    ANSWER_S,
    ASK_AGAIN_S,
    ASK_EVERY_S,
    BUILT_AT,
    CLOCK_ERROR_S,
    Instant,
    Timekeeper,
    is_of_dates,
    relax_dates,
    slept_s,
)
from edgefleet_protocol.attesting import TimeStatement, signed_time
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.messages import TimeAttestation

YEAR_S = 365 * 86_400.0
NOW = BUILT_AT + YEAR_S / 2
CHALLENGE = bytes(16)


class Desk:
    """A timekeeper with clocks that the test moves, and the hub's side of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.system, self.mono = Clock(NOW), Clock(1000.0)
        self.director = Repository()
        self._root = self.director.roots[0]
        self.checks = 0
        self.slept = 0.0
        self.keeper = self.open()

    def open(self, check: refresh.CheckTime | None = None) -> Timekeeper:
        return Timekeeper(
            self.folder,
            "cam-1",
            self._root,
            clock=self.system,
            monotonic=self.mono,
            nonce=os.urandom,
            slept=lambda: self.slept,
            check=check or self._check,
        )

    def restart(self) -> None:
        self.keeper = self.open()

    def _check(self, request: refresh.TimeCheck) -> refresh.TimeVerdict:
        self.checks += 1
        return tufclient.check_time(request)

    def answer(self, at: float, *, device: str = "cam-1") -> TimeAttestation:
        """Ask, and return what the hub says."""
        self.mono.now = max(self.mono.now, self.keeper.next_at())
        question = self.keeper.question()
        assert question is not None
        return self.director.attest(TimeStatement(device, question.nonce, at, CHALLENGE))

    def attest(self, at: float) -> None:
        self.keeper.take(self.answer(at), self.director.roots)

    def refusal(self, answer: TimeAttestation) -> str:
        with pytest.raises(RefusedError) as caught:
            self.keeper.take(answer, self.director.roots)
        return caught.value.reason


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# -- what time it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong_s", [-20 * YEAR_S, 0.0, 20 * YEAR_S])
def test_an_attested_time_counts_whatever_the_system_clock_says(desk: Desk, wrong_s: float) -> None:
    desk.system.now = NOW + wrong_s
    desk.attest(NOW)
    assert desk.keeper.instant() == Instant(NOW, attested=True)
    desk.mono.now += 90.0
    desk.system.now = 0.0
    assert desk.keeper.instant() == Instant(NOW + 90.0, attested=True)
    assert desk.keeper.challenge == CHALLENGE


@pytest.mark.parametrize(
    ("system", "expected"),
    [(0.0, BUILT_AT), (BUILT_AT - 1, BUILT_AT), (BUILT_AT + 1, BUILT_AT + 1)],
)
def test_an_unattested_time_is_never_before_the_agent_was_built(
    desk: Desk, system: float, expected: float
) -> None:
    desk.system.now = system
    assert desk.keeper.instant() == Instant(expected, attested=False)


def test_a_clock_set_back_after_a_restart_does_not_go_before_what_was_attested(desk: Desk) -> None:
    desk.attest(NOW)
    desk.system.now = NOW - YEAR_S / 4
    desk.restart()
    assert desk.keeper.instant() == Instant(NOW, attested=False)
    desk.system.now = NOW + 1
    assert desk.keeper.instant() == Instant(NOW + 1, attested=False)


def test_an_attested_time_does_not_go_back_under_the_same_key(desk: Desk) -> None:
    desk.attest(NOW)
    desk.attest(NOW - 1000.0)
    assert desk.keeper.instant().at == NOW
    desk.restart()
    desk.system.now = 0.0
    assert desk.keeper.instant().at == NOW


def test_a_time_attested_far_ahead_by_a_stolen_key_falls_when_that_key_is_replaced(
    desk: Desk,
) -> None:
    desk.attest(NOW + YEAR_S / 4)
    desk.director.rotate()
    desk.attest(NOW)
    assert desk.keeper.instant() == Instant(NOW, attested=True)
    desk.restart()
    desk.system.now = 0.0
    assert desk.keeper.instant().at == NOW


def test_a_floor_that_cannot_be_read_is_said_and_the_build_time_holds(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.attest(NOW)
    for path in desk.folder.glob("time.json*"):
        path.write_bytes(b"junk")
    desk.system.now = 0.0
    desk.restart()
    assert desk.keeper.instant().at == BUILT_AT
    assert "time floor: time.json cannot be read" in caplog.text


def test_a_floor_that_cannot_be_written_is_said_and_the_time_counts_in_this_process(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    answer = desk.answer(NOW)
    monkeypatch.setattr(files, "write_kept", full)
    desk.keeper.take(answer, desk.director.roots)
    assert "time floor cannot be written" in caplog.text
    assert desk.keeper.instant() == Instant(NOW, attested=True)


# -- whose answer counts ---------------------------------------------------------------------------


def test_an_answer_to_an_earlier_question_is_refused(desk: Desk) -> None:
    old = desk.answer(NOW)
    desk.answer(NOW)
    assert desk.refusal(old) == "replay"
    assert desk.checks == 0


def test_an_answer_counts_once(desk: Desk) -> None:
    answer = desk.answer(NOW)
    desk.keeper.take(answer, desk.director.roots)
    assert desk.refusal(answer) == "replay"


def test_an_answer_that_nobody_asked_for_is_refused(desk: Desk) -> None:
    statement = TimeStatement("cam-1", bytes(16), NOW, CHALLENGE)
    assert desk.refusal(desk.director.attest(statement)) == "replay"


def test_an_answer_that_was_held_back_is_refused(desk: Desk) -> None:
    answer = desk.answer(NOW)
    desk.mono.now += ANSWER_S
    desk.keeper.take(answer, desk.director.roots)
    answer = desk.answer(NOW)
    desk.mono.now += ANSWER_S + 0.001
    assert desk.refusal(answer) == "replay"


def test_an_answer_to_another_device_is_refused(desk: Desk) -> None:
    assert desk.refusal(desk.answer(NOW, device="cam-2")) == "wrong-device"


def test_an_answer_of_another_director_is_refused(desk: Desk) -> None:
    answer = desk.answer(NOW)
    statement = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
    assert desk.refusal(Repository().attest(statement)) == "bad-signature"


def test_forged_answers_cost_one_look_a_question(desk: Desk) -> None:
    """The broker knows the nonce; each look at a signature is a process."""
    answer = desk.answer(NOW)
    statement = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
    thief = Repository()
    reasons = [desk.refusal(thief.attest(statement)) for _ in range(5)]
    assert reasons == ["bad-signature", *["replay"] * 4]
    assert desk.checks == 1
    desk.attest(NOW)
    assert desk.keeper.instant().attested


def test_a_changed_statement_is_refused(desk: Desk) -> None:
    answer = desk.answer(NOW)
    said = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
    changed = msgspec.msgpack.encode(msgspec.structs.replace(said, at=NOW - YEAR_S))
    assert desk.refusal(msgspec.structs.replace(answer, statement=changed)) == "bad-signature"


def test_a_signature_of_something_else_by_the_same_key_is_refused(desk: Desk) -> None:
    """Without its domain, a signed role could be passed off as a time."""
    answer = desk.answer(NOW)
    bare = desk.director._signer.sign(answer.statement)
    other = msgspec.structs.replace(answer, signature=bytes.fromhex(bare.signature))
    assert desk.refusal(other) == "bad-signature"
    assert signed_time(answer.statement) != answer.statement


def test_a_statement_that_cannot_be_read_is_refused(desk: Desk) -> None:
    answer = desk.answer(NOW)
    with pytest.raises(MalformedError, match="the statement cannot be read"):
        desk.keeper.take(msgspec.structs.replace(answer, statement=b"\xc1"), [])


def test_a_key_attests_no_time_after_the_end_of_the_root_that_names_it(desk: Desk) -> None:
    root = Metadata[Root].from_bytes(desk.director.roots[0]).signed
    end = root.expires.timestamp()
    desk.attest(end - 1)
    assert desk.refusal(desk.answer(end)) == "expired"


def test_a_new_key_counts_as_soon_as_the_roots_of_an_assignment_lead_to_it(desk: Desk) -> None:
    desk.director.rotate()
    answer = desk.answer(NOW)
    with pytest.raises(RefusedError, match="a key that the director's root does not name"):
        desk.keeper.take(answer, [])
    assert not desk.keeper.instant().attested
    desk.attest(NOW)
    assert desk.keeper.instant().attested


def test_a_replaced_key_does_not_count_any_more(desk: Desk) -> None:
    answer = desk.answer(NOW)
    desk.director.rotate()
    assert desk.refusal(answer) == "bad-signature"


def test_a_stranger_s_root_leads_nowhere(desk: Desk) -> None:
    stranger = Repository()
    stranger.rotate()
    answer = desk.answer(NOW)
    statement = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
    with pytest.raises(RefusedError, match="does not name"):
        desk.keeper.take(stranger.attest(statement), [desk.director.roots[0], stranger.roots[1]])


def test_the_child_process_says_the_same(desk: Desk) -> None:
    desk.keeper = desk.open(refresh.time_in_child)
    desk.attest(NOW)
    assert desk.keeper.instant() == Instant(NOW, attested=True)
    answer = desk.answer(NOW)
    statement = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
    assert desk.refusal(Repository().attest(statement)) == "bad-signature"


# -- when it is asked ------------------------------------------------------------------------------


def test_it_is_asked_at_once_then_ever_more_seldom_until_it_is_answered(desk: Desk) -> None:
    keeper = desk.keeper
    keeper.connected()
    assert keeper.question() is not None
    assert keeper.question() is None
    assert keeper.next_at() == desk.mono.now + ASK_AGAIN_S
    desk.mono.now += ASK_AGAIN_S
    assert keeper.question() is not None
    assert keeper.next_at() == desk.mono.now + 2 * ASK_AGAIN_S
    keeper.connected()
    assert keeper.question() is not None


def test_once_attested_it_is_asked_every_hour_and_not_at_every_connection(desk: Desk) -> None:
    desk.attest(NOW)
    desk.keeper.connected()
    assert desk.keeper.question() is None
    assert desk.keeper.next_at() == desk.mono.now + ASK_EVERY_S
    desk.mono.now += ASK_EVERY_S
    assert desk.keeper.question() is not None


def test_what_expires_on_arrival_makes_the_device_ask_again_but_not_without_end(desk: Desk) -> None:
    desk.attest(NOW)
    asked_at = desk.mono.now
    desk.keeper.doubted()
    assert desk.keeper.next_at() == asked_at + ASK_AGAIN_S
    desk.mono.now += ASK_AGAIN_S
    assert desk.keeper.question() is not None
    desk.mono.now += 2 * ASK_EVERY_S
    assert desk.keeper.question() is not None


def test_time_goes_on_while_the_machine_sleeps(desk: Desk) -> None:
    desk.attest(NOW)
    desk.slept = 1e7
    assert desk.keeper.instant().at == NOW + 1e7
    assert slept_s() >= -0.1


# -- dates of certificates -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (BUILT_AT - CLOCK_ERROR_S - 1, "skip"),
        (BUILT_AT - CLOCK_ERROR_S, "try"),
        (BUILT_AT + 50 * YEAR_S, "try"),
    ],
)
def test_before_the_time_is_attested_dates_are_tried_unless_the_clock_is_before_the_floor(
    desk: Desk, system: float, expected: str
) -> None:
    desk.system.now = system
    assert desk.keeper.dates() == expected
    assert desk.keeper.dates_checkable() == (expected != "skip")


@pytest.mark.parametrize("sign", [-1, 1])
def test_once_it_is_attested_dates_are_checked_by_a_clock_that_agrees(
    desk: Desk, sign: int
) -> None:
    desk.attest(NOW)
    desk.system.now = NOW + sign * CLOCK_ERROR_S
    assert desk.keeper.dates() == "check"
    desk.system.now += sign
    assert desk.keeper.dates() == "skip"


class Certificates:
    """An authority, and a server's certificate that is not valid now."""

    def __init__(self, folder: Path, starts: timedelta, name: str = "localhost") -> None:
        self.ca, self.pair = folder / "ca.pem", folder / "pair.pem"
        key, ca_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name, server = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("ca", name)
        )
        now = datetime.now(UTC)
        year = timedelta(days=365)

        def built(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(ca_name)
                .public_key(public)
                .serial_number(x509.random_serial_number())
            )

        authority = (
            built(ca_name, ca_key.public_key())
            .not_valid_before(now - 9 * year)
            .not_valid_after(now + 9 * year)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        certificate = (
            built(server, key.public_key())
            .not_valid_before(now + starts)
            .not_valid_after(now + starts + timedelta(days=30))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.ca.write_bytes(authority.public_bytes(pem))
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.pair.write_bytes(private + certificate.public_bytes(pem))


def handshake(held: Certificates, trusted: Path, prepare: Callable[[ssl.SSLContext], None]) -> None:
    """Connect a client to a server that shows the certificate.

    Raises:
        ssl.SSLError: if the client does not take it.
    """
    context = ssl.create_default_context(cafile=str(trusted))
    prepare(context)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(held.pair)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context.wrap_socket(ours, server_hostname="localhost").close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("starts", [timedelta(days=-400), timedelta(days=400)])
def test_tls_without_dates_takes_a_certificate_that_is_wrong_in_nothing_else(
    tmp_path: Path, starts: timedelta
) -> None:
    held = Certificates(tmp_path, starts)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        handshake(held, held.ca, lambda _: None)
    assert is_of_dates(caught.value)
    handshake(held, held.ca, relax_dates)


def test_tls_without_dates_still_asks_for_the_right_authority_and_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other", timedelta(days=-1))
    held = Certificates(tmp_path, timedelta(days=-1))
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        handshake(held, other.ca, relax_dates)
    assert not is_of_dates(caught.value)
    elsewhere = Certificates(tmp_path, timedelta(days=-1), name="elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(elsewhere, elsewhere.ca, relax_dates)
