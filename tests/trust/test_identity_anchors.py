"""Keys in a TPM and in a PKCS#11 token: real ones (swtpm, SoftHSM), and a real hub."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet_agent import cli
from edgefleet_agent.errors import EnrolmentError
from edgefleet_agent.trusting import anchors, identity, keyholder
from edgefleet_agent.trusting.renewal import Look, Renew, Sign
from edgefleet_cloud.fleet import expected
from edgefleet_cloud.fleet.expected import Expected
from edgefleet_cloud.fleet.testing import free_port, until
from edgefleet_cloud.hub import Hub, running
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.identity import signatures
from edgefleet_protocol.identifiers import digest_of

SOFTHSM = next(
    (
        path
        for path in map(
            Path, ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"]
        )
        if path.exists()
    ),
    None,
)
PROVIDERS = list(Path("/usr/lib").glob("*/ossl-modules/tpm2.so"))
needs_tpm = pytest.mark.skipif(
    not (shutil.which("swtpm") and PROVIDERS),
    reason="swtpm or tpm2-openssl is not installed; see scripts/system_packages.sh",
)
needs_token = pytest.mark.skipif(
    not (SOFTHSM and shutil.which("pkcs11-tool")),
    reason="softhsm2 or opensc is not installed; see scripts/system_packages.sh",
)


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[str]:
    """Run a TPM; give the `[key]` table that reaches it."""
    port = _two_ports()
    state = tmp_path / "tpm"
    state.mkdir()
    ways = [f"type=tcp,port={port + offset},bindaddr=127.0.0.1" for offset in (0, 1)]
    command = f"swtpm socket --tpm2 --flags not-need-init,startup-clear --tpmstate dir={state}"
    process = subprocess.Popen(
        [*command.split(), "--server", ways[0], "--ctrl", ways[1]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: _answers(port + 1), "swtpm")
    yield f'[key]\nkind = "tpm"\ntcti = "swtpm:host=127.0.0.1,port={port}"\n'
    process.terminate()
    process.wait()


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a token; give the `[key]` table that reaches it."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    settings = tmp_path / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {folder}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(settings))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label=dev", "--pin=1234", "--so-pin=4321"],
        check=True,
        capture_output=True,
        env=dict(os.environ),
    )
    (tmp_path / "pin").write_text("1234\n")
    return (
        f'[key]\nkind = "pkcs11"\nmodule = "{SOFTHSM}"\ntoken = "dev"\n'
        f'pin_file = "{tmp_path / "pin"}"\n'
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    settings = Settings(home=tmp_path / "hub", api_port=free_port(), mqtt_port=free_port())
    with running(settings) as started:
        yield started


def lives_in_hardware(
    hub: Hub, store: Path, table: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Announce a key by its fingerprint, enrol with it, renew and sign with it."""
    store.mkdir()
    (store / "agent.toml").write_text(table)
    assert cli.main(["key", "--store", str(store)]) == 0
    fingerprint = capsys.readouterr().out.strip()
    services, now = hub.services, time.time()
    with services.database.write() as session:
        expected.announce(session, [Expected("SN-1", "cam-1", key=fingerprint)], 3600.0, now)
    enrol = ["enroll", "--hub", hub.url, "--serial", "SN-1", "--store", str(store)]
    assert cli.main([*enrol, "--ca-fingerprint", services.authority.fingerprint]) == 0
    known = identity.load(store)
    folder = str(known.folder)
    looked = keyholder.answer(Look(folder)).facts
    assert looked is not None
    assert looked.key == kind
    renewed = keyholder.answer(Renew(folder, hub.url, "cam-1", without_dates=False))
    assert renewed.failure == "", renewed.text
    assert renewed.facts is not None
    assert renewed.facts.serial != looked.serial
    place = identity.anchor(known.folder)
    assert place is not None
    public = anchors.public_key(place)
    assert digest_of(public) == fingerprint
    signed = keyholder.answer(Sign(folder, b"what it swears to"))
    assert signatures.is_signed(public, signed.signature, b"what it swears to")
    # The files alone, without the hardware, renew nothing.
    (known.folder / identity.ANCHOR).unlink()
    refused = keyholder.answer(Renew(folder, hub.url, "cam-1", without_dates=False))
    assert refused.failure == "refused"
    assert "not signed by a key of this device" in refused.text


@needs_tpm
def test_a_key_in_a_tpm_enrols_renews_and_signs(
    hub: Hub, tmp_path: Path, tpm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lives_in_hardware(hub, tmp_path / "store", tpm, "tpm", capsys)
    kept = (tmp_path / "store" / "identity" / anchors.TPM_KEY).read_text()
    assert "TSS2 PRIVATE KEY" in kept


@needs_token
def test_a_key_in_a_token_enrols_renews_and_signs(
    hub: Hub, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lives_in_hardware(hub, tmp_path / "store", token, "pkcs11", capsys)


def test_hardware_that_is_not_there_is_said(tmp_path: Path) -> None:
    place = identity.AnchorPlace("tpm", str(tmp_path / "none.key"), "swtpm:port=1")
    uses: list[Callable[[], object]] = [
        lambda: anchors.public_key(place),
        lambda: anchors.sign(place, b""),
        lambda: anchors.make(place),
    ]
    for use in uses:
        with pytest.raises(EnrolmentError, match="the tpm key cannot be used"):
            use()


def test_a_file_key_is_not_shown_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", "--store", str(tmp_path)]) == 2
    assert "made at each enrolment" in capsys.readouterr().err


def _two_ports() -> int:
    """Return a free port whose successor is free too: swtpm's TCTI takes the two together."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
