"""Drills of identity: real hubs and brokers, real agents; nobody touches a device."""

import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from edgefleet_agent import link
from edgefleet_agent.agent import Agent
from edgefleet_agent.config import Config
from edgefleet_agent.trusting import enrolment, identity, keyholder
from edgefleet_cloud.database.models import Certificate, Device, Incident, StatementRecord
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.fleet import authorities, statements
from edgefleet_cloud.fleet import enrolment as fleet_enrolment
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest
from edgefleet_cloud.fleet.renewal import CLONED
from edgefleet_cloud.fleet.testing import free_port, signing_request, until
from edgefleet_cloud.hub import Hub, running
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.repositories import keys, layout
from edgefleet_cloud.trust.repositories.ceremonies import Ceremonies
from edgefleet_cloud.trust.repositories.keys import Secrets

YEAR_S = 365 * 86_400.0
DEADLINE_S = 90.0
MACHINE = enrolment.Machine("generic-x86_64", {}, 1 << 30)


def settings(home: Path, **changes: object) -> Settings:
    home.mkdir(exist_ok=True)
    return Settings(home=home, api_port=free_port(), mqtt_port=free_port(), tick_s=0.1, **changes)


def claim(services: Services, device: str) -> enrolment.Claim:
    with services.database.write() as session:
        token = fleet_enrolment.create_claim(
            session, device, {}, 3600.0, services.authority.fingerprint, services.clock()
        )
    return enrolment.parse_claim(token)


def enrol(hub: Hub, device: str, store: Path) -> None:
    """Enrol over HTTPS, as the device's own program does."""
    enrolment.enrol(store, hub.url, claim(hub.services, device), MACHINE)


@contextmanager
def agent(store: Path) -> Iterator[Agent]:
    started = Agent(Config(store=str(store), board="generic-x86_64", heartbeat_s=1.0))
    started.start()
    try:
        yield started
    finally:
        started.stop()


def serials(services: Services, device: str) -> dict[str, str]:
    """Return certificate → how it ended, in the order in which they were given."""
    with services.database.read() as session:
        rows = session.scalars(
            select(Certificate)
            .where(Certificate.device_id == device)
            .order_by(Certificate.issued_at)
        )
        return {row.serial: row.ended for row in rows}


def sworn(services: Services, device: str) -> StatementRecord | None:
    with services.database.read() as session:
        return statements.newest(session, device)


def incidents(services: Services) -> list[str]:
    """Return what was told about identities."""
    kinds = [CLONED, statements.FALSE_STATEMENT, statements.STATE_DIFFERS]
    with services.database.read() as session:
        rows = session.scalars(select(Incident).where(Incident.kind.in_(kinds)))
        return [f"{row.kind}: {row.text}" for row in rows]


def test_a_certificate_is_renewed_and_replaced_while_the_agent_runs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(running(settings(tmp_path / "hub", certificate_ttl_s=20.0)))
        enrol(hub, "cam-1", tmp_path / "cam-1")
        (first,) = serials(hub.services, "cam-1")
        stack.enter_context(agent(tmp_path / "cam-1"))
        until(lambda: serials(hub.services, "cam-1")[first] == "replaced", "renewal", DEADLINE_S)

        def sworn_with_a_newer_one() -> bool:
            statement = sworn(hub.services, "cam-1")
            return statement is not None and statement.certificate != first

        until(sworn_with_a_newer_one, "statement with the renewed certificate", DEADLINE_S)
        statement = sworn(hub.services, "cam-1")
        assert statement is not None
        assert statement.authorities == hub.services.authority.fingerprints
        assert statement.challenge_age_s is not None
        assert statement.time_attested
        assert incidents(hub.services) == []


def test_a_fleet_that_was_off_for_a_year_comes_back_by_itself(tmp_path: Path) -> None:
    """Certificates of devices, API and broker have expired, and so has all online metadata."""
    home = settings(tmp_path / "hub")
    long_ago = time.time() - 1.1 * YEAR_S
    with running(home, clock=lambda: long_ago) as hub:
        # Over HTTPS today's TLS would refuse a server certificate of that time.
        enrol_in_process(hub.services, "cam-1", tmp_path / "cam-1")
        (expired,) = serials(hub.services, "cam-1")
    with ExitStack() as stack:
        hub = stack.enter_context(running(home))
        with hub.services.database.read() as session:
            assert session.get_one(Certificate, expired).expires_at < time.time() - 300 * 86_400.0
        stack.enter_context(agent(tmp_path / "cam-1"))

        def accepted() -> bool:
            with hub.services.database.read() as session:
                return bool(session.get_one(Device, "cam-1").reported.get("assignment"))

        until(accepted, "an accepted assignment", DEADLINE_S)
        until(lambda: sworn(hub.services, "cam-1"), "a signed statement", DEADLINE_S)
        assert serials(hub.services, "cam-1")[expired] == "replaced"
        assert incidents(hub.services) == []


def test_a_device_that_slept_while_the_authority_was_rotated_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device is awake and one asleep; the old authority is retired before the second wakes."""
    monkeypatch.setattr(link, "REFUSED_BACKOFF_S", 1.0)
    home = settings(tmp_path / "hub")
    with ExitStack() as stack:
        hub = stack.enter_context(running(home))
        services = hub.services
        old = services.authority.fingerprint
        for device in ("awake", "asleep"):
            enrol(hub, device, tmp_path / device)
        with agent(tmp_path / "awake"), agent(tmp_path / "asleep"):
            for device in ("awake", "asleep"):
                until(lambda name=device: sworn(services, name), "first statement", DEADLINE_S)
        stack.enter_context(agent(tmp_path / "awake"))
        authorities.rotate(services)
        new = services.authority.fingerprint
        assert new != old
        sign_draft(services, home.home)

        def knows_the_new_one() -> bool:
            statement = sworn(services, "awake")
            return statement is not None and new in statement.authorities

        until(knows_the_new_one, "the new authority on the device that is awake", DEADLINE_S)
        with pytest.raises(ConflictError, match="2 enrolled devices depend"):
            authorities.retire(services, old, force=False)
        authorities.retire(services, old, force=True)
        sign_draft(services, home.home)
        # A server that has only the new one, and what the old one signed of it.
        until(lambda: served_by(hub) == "edgefleet hub CA 2", "a new server certificate", 20)
        stack.enter_context(agent(tmp_path / "asleep"))

        def came_back() -> bool:
            statement = sworn(services, "asleep")
            return statement is not None and statement.authorities == [new]

        until(came_back, "the device that slept", DEADLINE_S)
        assert incidents(services) == []


def served_by(hub: Hub) -> str:
    """Return the name of the authority that signed the certificate that the API shows."""
    host, port = "127.0.0.1", hub.services.settings.api_port
    pem = ssl.get_server_certificate((host, port))
    issuer = x509.load_pem_x509_certificate(pem.encode()).issuer
    return str(issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def sign_draft(services: Services, home: Path) -> None:
    """Sign the drafted top-level targets with two of the three offline keys."""
    ceremonies = Ceremonies(services.images, services.director, services.database, services.clock)
    secrets = Secrets({"EDGEFLEET_PASSPHRASE_FILE": str(home / "offline-keys" / "PASSPHRASE")})
    for number in (1, 2):
        name = layout.TARGETS
        draft = ceremonies.drafts()[name]
        signer = keys.load(str(home / "offline-keys" / f"targets-{number}.pem"), secrets)
        draft.sign(signer, append=True)
        ceremonies.sign(name, draft.to_bytes())
    services.wake()


def enrol_in_process(services: Services, device: str, store: Path) -> None:
    asked = claim(services, device)
    key = ec.generate_private_key(ec.SECP256R1())
    request = EnrolmentRequest(
        device, asked.secret, signing_request(device, key), "generic-x86_64", {}, 1 << 30
    )
    with services.database.write() as session:
        grant = fleet_enrolment.redeem(session, services, request, services.clock())
    url = f"https://127.0.0.1:{services.settings.api_port}"
    identity.save(
        store,
        identity.Hub(device, grant.mqtt_host, grant.mqtt_port, url),
        key=keyholder.key_pem(key),
        certificate=grant.certificate.encode(),
        ca=grant.ca.encode(),
        image_root=grant.image_root.encode(),
        director_root=grant.director_root.encode(),
    )
