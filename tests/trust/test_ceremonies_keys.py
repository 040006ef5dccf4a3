"""Signing keys: encrypted files that OpenSSL reads, tokens, public halves, and secrets."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust.repositories import keyfiles, keys
from edgefleet_cloud.trust.repositories.keys import KeyUnusableError, Secrets
from edgefleet_cloud.trust.repositories.online import OnlineKeys

PASSPHRASE = "correct horse battery"
MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")


def verifies(signer, payload: bytes = b"metadata") -> bool:
    signer.public_key.verify_signature(signer.sign(payload), payload)
    return True


def test_a_key_file_signs_again_with_its_passphrase(tmp_path):
    made = keyfiles.make(tmp_path / "ann.pem", "ann", PASSPHRASE)
    loaded = keys.load(str(tmp_path / "ann.pem"), Secrets({keys.PASSPHRASE: PASSPHRASE}))
    assert loaded.public_key.keyid == made.public_key.keyid
    assert keyfiles.name_of(loaded.public_key) == "ann"
    assert verifies(loaded)
    assert (tmp_path / "ann.pem").stat().st_mode & 0o777 == 0o600


def test_a_key_file_is_plain_pkcs8_that_openssl_opens(tmp_path):
    keyfiles.make(tmp_path / "ann.pem", "ann", PASSPHRASE)
    done = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "ann.pem", "-passin", "env:PASS", "-noout", "-text"],
        env={**os.environ, "PASS": PASSPHRASE},
        capture_output=True,
        check=True,
    )
    assert b"ED25519 Private-Key" in done.stdout
    described = subprocess.run(
        ["openssl", "asn1parse", "-in", tmp_path / "ann.pem"], capture_output=True, check=True
    )
    assert b"scrypt" in described.stdout


def test_a_wrong_passphrase_is_refused_and_told_nowhere(tmp_path):
    keyfiles.make(tmp_path / "ann.pem", "ann", PASSPHRASE)
    with pytest.raises(DamagedError) as refused:
        keys.load(str(tmp_path / "ann.pem"), Secrets({keys.PASSPHRASE: "another secret"}))
    assert "another secret" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_a_short_passphrase_and_an_existing_file_are_refused(tmp_path):
    with pytest.raises(InvalidError, match="at least 12 characters; this one has 11"):
        keyfiles.make(tmp_path / "ann.pem", "ann", "x" * 11)
    keyfiles.make(tmp_path / "ann.pem", "ann", "x" * 12)
    with pytest.raises(InvalidError, match="a key is never overwritten"):
        keyfiles.make(tmp_path / "ann.pem", "ann", "x" * 12)


@pytest.mark.parametrize("name", ["", "x" * 65, "line\nend", "ünn"])
def test_a_name_that_could_mislead_is_refused(tmp_path, name):
    with pytest.raises(InvalidError, match="1 to 64 printable characters"):
        keyfiles.make(tmp_path / "ann.pem", name, None)


def test_a_secret_comes_from_the_file_then_the_environment_then_the_terminal(tmp_path):
    file = tmp_path / "secret"
    file.write_text("from the file\nsecond line\n")
    prompt = lambda what: f"typed for {what}"  # noqa: E731  # one line says it
    environment = {keys.PASSPHRASE: "from the environment"}
    assert Secrets(environment, file, prompt).get("k") == "from the file"
    assert Secrets(environment, None, prompt).get("k") == "from the environment"
    assert Secrets({keys.PASSPHRASE_FILE: str(file)}, None, prompt).get("k") == "from the file"
    assert Secrets({}, None, prompt).get("k") == "typed for k"
    with pytest.raises(KeyUnusableError, match="k needs a passphrase: set EDGEFLEET_PASSPHRASE_F"):
        Secrets({}).get("k")
    assert "environment" not in repr(Secrets(environment, file, prompt))


def test_an_empty_or_missing_passphrase_file_is_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(KeyUnusableError, match="is empty"):
        Secrets({}, tmp_path / "empty").get("k")
    with pytest.raises(KeyUnusableError, match="cannot be read"):
        Secrets({}, tmp_path / "none").get("k")


@pytest.mark.parametrize("make", ["generate_ed25519", "generate_ecdsa", "generate_rsa"])
def test_a_public_file_gives_the_key_back(make):
    signer = getattr(CryptoSigner, make)()
    keyfiles.label(signer.public_key, "ann")
    read = keyfiles.read_public(keyfiles.public_bytes(signer.public_key), "ann.pub")
    assert read == signer.public_key


def test_one_key_cannot_pass_under_a_second_id():
    signer = CryptoSigner.generate_ecdsa()
    body = json.loads(keyfiles.public_bytes(keyfiles.label(signer.public_key, "ann")))
    for change in ({"keyid": "0" * 64}, {"key": {**body["key"], "scheme": "ed25519"}}):
        with pytest.raises(InvalidError, match="is no public key file"):
            keyfiles.read_public(json.dumps(body | change), "ann.pub")
    # The same key, its PEM written in another way, and the id that goes with that writing.
    other = json.loads(json.dumps(body))
    other["key"]["keyval"]["public"] += "\n\n"
    twin = CryptoSigner.generate_ecdsa().public_key
    twin.keyval = other["key"]["keyval"]
    other["keyid"] = keyfiles.keyid_of(twin)
    with pytest.raises(InvalidError, match="does not have the id of its content"):
        keyfiles.read_public(json.dumps(other), "ann.pub")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"keyid": 1, "key": 2}', "not json"])
def test_what_is_no_public_file_is_refused(text):
    with pytest.raises(InvalidError, match="is no public key file"):
        keyfiles.read_public(text, "ann.pub")


def test_an_unknown_uri_names_those_that_are_known():
    with pytest.raises(InvalidError, match="one of awskms, azurekms, gcpkms, hsm"):
        keys.load("vaults:x", Secrets({}))


def test_a_cloud_key_without_its_library_says_what_to_install():
    with pytest.raises(KeyUnusableError, match=r"install securesystemslib\[gcpkms\]"):
        keys.load("gcpkms:projects/p/x", Secrets({}))


def test_online_keys_are_encrypted_where_a_passphrase_is_at_hand(tmp_path):
    folder = tmp_path / "images" / "keys"
    secrets = Secrets({keys.PASSPHRASE: PASSPHRASE})
    made = OnlineKeys.open(folder, (), secrets).make("image.snapshot")
    (path,) = folder.glob("snapshot-*.pem")
    assert keyfiles.is_encrypted(path)
    assert OnlineKeys.open(folder, (), secrets).holds([made.keyid])
    with pytest.raises(KeyUnusableError, match="needs a passphrase"):
        OnlineKeys.open(folder)


# --- a token over PKCS#11 ---------------------------------------------------------------------


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a SoftHSM token with a P-256 key, as a security key has one; return its PIN."""
    module = next((path for path in MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is missing: scripts/system_packages.sh installs it")
    if shutil.which("pkcs11-tool") is None:
        pytest.skip("opensc (pkcs11-tool) is missing: scripts/system_packages.sh installs it")
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    monkeypatch.setenv("PYKCS11LIB", module)
    for command in (
        ["softhsm2-util", "--init-token", "--free", "--label", "fleet", "--so-pin", "5678",
         "--pin", "1234"],
        ["pkcs11-tool", "--module", module, "--token-label", "fleet", "--login", "--pin", "1234",
         "--keypairgen", "--key-type", "EC:prime256v1", "--id", "02", "--usage-sign"],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return "1234"


def test_a_key_on_a_token_signs_with_its_pin_and_is_never_in_a_file(token):
    signer = keys.load("hsm:2?label=fleet", Secrets({keys.PASSPHRASE: token}))
    assert verifies(signer)
    assert signer.public_key.scheme == "ecdsa-sha2-nistp256"
    public = keys.public_key("hsm:2?label=fleet", Secrets({keys.PASSPHRASE: token}))
    assert public.keyid == keyfiles.keyid_of(public) == signer.public_key.keyid


def test_a_missing_token_is_said_by_its_uri(token):
    with pytest.raises(KeyUnusableError, match="hsm:2\\?label=other cannot be used"):
        keys.load("hsm:2?label=other", Secrets({keys.PASSPHRASE: token}))
