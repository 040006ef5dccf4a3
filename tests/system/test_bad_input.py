"""Bad input at the places where a person gives it: a clear sentence, and everything lives on."""

import pickle
import ssl
import threading
from pathlib import Path

import joblib
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from scipy import special
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from demo.fleet import wait_for
from edgefleet_protocol import topics
from tests.system.processes import DEVICE, Fleet, enroll

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_malformed_csv_is_refused_with_its_line(
    fleet: Fleet, iris: tuple[Path, Path], tmp_path: Path
) -> None:
    sample = write(tmp_path / "rows.csv", b"a,b,target\n1,2,0\n1,2,3,4,5\n")
    done = fleet.ship(iris[0], sample)
    assert done.returncode == 2
    assert "line 3" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.joblib", b"\x80\x04\x95", "cannot be"),
        ("empty.onnx", b"", "empty"),
        ("list.pkl", pickle.dumps([1, 2, 3]), "list"),
        ("model.docx", b"PK", "docx"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(
    fleet: Fleet, iris: tuple[Path, Path], tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    done = fleet.ship(write(tmp_path / name, content), iris[1])
    assert done.returncode in (1, 2)
    assert says in done.stderr, done.stderr


def test_a_model_with_an_unsupported_operator_is_refused_by_its_name(
    fleet: Fleet, iris: tuple[Path, Path], tmp_path: Path
) -> None:
    features, labels = load_iris(return_X_y=True)
    model = make_pipeline(FunctionTransformer(special.gammaln), LogisticRegression(max_iter=500))
    joblib.dump(model.fit(features, labels), tmp_path / "gamma.joblib")
    done = fleet.ship(tmp_path / "gamma.joblib", iris[1])
    assert done.returncode == 1
    assert "FunctionTransformer" in done.stderr, done.stderr
    assert "gammaln" in done.stderr, done.stderr


def test_a_wrong_claim_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.hub.client.post("/v1/devices", {"device": "gate-2", "labels": {}})["token"]
    head, device, secret, fingerprint = token.split(".")
    wrong = f"{head}.{device}.{secret[::-1]}.{fingerprint}"
    refused = enroll(fleet.hub, wrong, tmp_path / "gate-2")
    assert refused.returncode == 4
    assert "claim" in refused.stderr
    false_hub = f"{head}.{device}.{secret}.{'0' * 64}"
    assert enroll(fleet.hub, false_hub, tmp_path / "gate-2").returncode != 0
    assert enroll(fleet.hub, token, tmp_path / "gate-2").returncode == 0
    assert enroll(fleet.hub, token, tmp_path / "gate-3").returncode == 4
    # It never runs; the tests that follow ship to all.
    fleet.hub.client.post("/v1/devices/gate-2/revoke")


def test_an_unreadable_configuration_stops_the_command(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "hub.toml").write_text("api_port = 'many'\n")
    done = fleet.cli("up", "--home", home)
    assert done.returncode == 2
    assert "api_port" in done.stderr


def test_hostile_messages_of_a_device_are_dropped_and_the_hub_lives_on(fleet: Fleet) -> None:
    fleet.device.stop()
    identity = fleet.device.store / "identity"
    context = ssl.create_default_context(cafile=str(identity / "ca.pem"))
    context.load_cert_chain(identity / "device.pem", identity / "device.key")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=DEVICE)
    client.tls_set_context(context)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("localhost", fleet.hub.mqtt_port)
    client.loop_start()
    try:
        assert connected.wait(20)
        hostile = b"\x00\x82\xa6device\xdb\xff\xff\xff\xff"
        for kind in sorted(topics.UP_KINDS):
            for payload in (b"", b"\x09", hostile, b"\x01(\xb5/\xfd", bytes(600_000)):
                sent = client.publish(topics.up(DEVICE, kind), payload, qos=1)
                sent.wait_for_publish(20)
    finally:
        client.disconnect()
        client.loop_stop()
    fleet.device.start()
    before = fleet.hub.client.get(f"/v1/devices/{DEVICE}")["last_seen_at"] or 0.0

    def heard() -> bool | None:
        seen = fleet.hub.client.get(f"/v1/devices/{DEVICE}")["last_seen_at"]
        return True if (seen or 0.0) > before else None

    wait_for("a message of the device", heard, timeout_s=60)
