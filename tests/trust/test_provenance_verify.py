"""`edgefleet verify`: what is shown of a file, and what is refused, with a hub and without one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from edgefleet_cloud.api.testing import served
from edgefleet_cloud.cli import app
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.cli.output import CliError, ExitCode
from edgefleet_cloud.database.models import Variant
from edgefleet_cloud.fleet.testing import Bundle, open_services, release_bundle
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.audit import attesting, log
from edgefleet_protocol import manifest as manifests
from edgefleet_protocol.identifiers import digest_of
from tests.cloud.conftest import Clock

MODEL = b"the weights of a model" * 50


class Hub:
    """A hub with a release of `digits`, shared by all tests of this module."""

    def __init__(self, services: Services, http: httpx.Client) -> None:
        self.services = services
        self.http = http
        self.bundle = self.release("digits", "3", 4, MODEL)

    def release(self, model: str, version: str, number: int, content: bytes) -> Bundle:
        store, now = self.services.store, self.services.clock()
        with self.services.database.write() as session:
            made = release_bundle(session, store, model, version, number, content)
            variant = session.query(Variant).filter_by(manifest=made.manifest).one()
            variant.model_digest = digest_of(content)
            variant.needs = {"runtime": "onnxruntime", "runtime_min": "1.16"}
            log.record(session, "version.approve", f"{model} {version}", now, reason="better")
        self.publish()
        return made

    def publish(self) -> None:
        services = self.services
        attesting.attest_due(services.database, services.store, services.builder, services.clock())
        with services.database.read() as session:
            services.images.sync(registry.image_entries(session, services.store))


class World:
    """The hub, a folder of one's own with its bundle, and a terminal."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.services = hub.services
        self.bundle = hub.bundle
        self.folder = folder
        self.root = folder / "1.root.json"
        self.root.write_bytes(self.services.images.root_1)
        self.bundle_dir = self.save(hub.bundle)

    def save(self, bundle: Bundle) -> Path:
        """Lay a bundle out as a converter does."""
        folder = self.folder / "bundle"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_bytes(self.services.store.read(bundle.manifest))
        for digest, blob in bundle.blobs.items():
            (folder / digest).write_bytes(blob)
        return folder

    def model_file(self, content: bytes = MODEL) -> Path:
        path = self.folder / "lone" / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(content)
        return path

    def run(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(arguments), obj=Client(self.hub.http))
        assert done.exit_code == code, done.output
        return done.output

    def mirror(self) -> Path:
        folder = self.folder / "mirror"
        self.run("trust", "export", str(folder))
        return folder

    def log(self) -> Path:
        path = self.folder / "log.jsonl"
        self.run("audit", "export", str(path))
        return path

    def verify(self, artifact: Path, *options: str, code: int = 0) -> str:
        return self.run("verify", str(artifact), "--root", str(self.root), *options, code=code)

    def verified(self, artifact: Path, *options: str) -> Any:
        return json.loads(self.verify(artifact, "--json", *options))


@pytest.fixture(scope="module")
def hub(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    home = tmp_path_factory.mktemp("home")
    services = open_services(home, Clock(), migrated=migrated)
    with served(services) as http:
        yield Hub(services, http)
    services.database.close()


@pytest.fixture
def world(hub: Hub, tmp_path: Path) -> World:
    return World(hub, tmp_path)


def test_the_chain_goes_from_the_file_to_the_root(world: World) -> None:
    held = world.verified(world.bundle_dir)
    assert held["verified"] is True
    assert held["manifest"] == world.bundle.manifest
    assert held["path"] == "digits/r4/onnx-fp32.json"
    assert held["target"]["version"] == "3"
    chain = [(item["role"], item["threshold"], len(item["signed"])) for item in held["chain"]]
    assert chain == [
        ("releases", 1, 1), ("targets", 2, 2), ("snapshot", 1, 1), ("timestamp", 1, 1),
        ("root", 2, 2),
    ]  # fmt: skip
    assert held["roots"] == [1, 1]
    assert held["root"] == str(world.root)
    assert held["builder"] == world.services.builder.keyid
    assert held["statement"]["predicate"]["runDetails"]["metadata"]["invocationId"] == "run/1"
    (approved, attested) = held["decisions"]
    assert (approved["action"], approved["reason"]) == ("version.approve", "better")
    assert attested["action"] == "version.attest"


def test_it_is_shown_to_people_in_one_table(world: World) -> None:
    shown = world.verify(world.bundle_dir)
    assert shown.startswith("verified\n")
    for words in ("digits r4: version 3", "releases", "root 1 from", "version.approve by hub"):
        assert words in shown


@pytest.mark.parametrize("name", ["manifest.json", "model", "golden"])
def test_any_file_of_the_bundle_is_traced_by_the_manifest_beside_it(
    world: World, name: str
) -> None:
    manifest = manifests.decode((world.bundle_dir / "manifest.json").read_bytes())
    path = world.bundle_dir / name
    if name != "manifest.json":
        path = world.bundle_dir / manifest.file(name).transfer.digest
    assert world.verified(path)["manifest"] == world.bundle.manifest


def test_a_file_of_a_devices_store_is_traced_among_its_neighbours(world: World) -> None:
    files = world.folder / "files"
    files.mkdir()
    shutil.copy(world.bundle_dir / "manifest.json", files / world.bundle.manifest)
    (files / digest_of(MODEL)).write_bytes(MODEL)
    (files / ("0" * 64)).write_bytes(b'{"another": "file"}')
    assert world.verified(files / digest_of(MODEL))["manifest"] == world.bundle.manifest


def test_a_lone_model_file_is_traced_by_what_the_hub_knows(world: World) -> None:
    assert world.verified(world.model_file())["manifest"] == world.bundle.manifest


def test_a_lone_blob_is_looked_for_in_the_manifests(world: World) -> None:
    manifest = manifests.decode((world.bundle_dir / "manifest.json").read_bytes())
    path = world.folder / "lone-reference"
    shutil.copy(world.bundle_dir / manifest.file("reference").transfer.digest, path)
    assert world.verified(path)["manifest"] == world.bundle.manifest


def test_a_mirror_needs_no_hub(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = world.mirror()
    exported = world.log()
    model = world.model_file()
    monkeypatch.setattr(Client, "_send", None)
    held = world.verified(model, "--mirror", str(mirror), "--audit", str(exported))
    assert held["manifest"] == world.bundle.manifest
    assert [item["action"] for item in held["decisions"]] == ["version.approve", "version.attest"]
    assert world.verified(model, "--mirror", str(mirror))["decisions"] is None


def test_of_several_releases_the_newest_is_named(world: World) -> None:
    bundle = world.hub.release("door", "1", 9, b"a model of doors")
    with world.services.database.write() as session:
        registry.release(session, "door", "1", "again", world.services.clock())
    world.hub.publish()
    assert world.verified(world.save(bundle))["path"] == "door/r10/onnx-fp32.json"


# --- not known, and refused ---------------------------------------------------------------------


def test_a_file_that_nobody_has_released_is_not_known(world: World) -> None:
    path = world.folder / "other.onnx"
    path.write_bytes(b"something else")
    assert "not known: no manifest is known" in world.verify(path, code=ExitCode.NOT_KNOWN)


def test_a_manifest_that_no_role_lists_is_not_known(world: World) -> None:
    path = world.folder / "else"
    path.mkdir()
    data = (world.bundle_dir / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(
        data.replace(b'"model_version":"3"', b'"model_version":"4"')
    )
    shown = world.verify(path / "manifest.json", code=ExitCode.NOT_KNOWN)
    assert "no role of the image repository lists the manifest" in shown


def alter_blob(world: World) -> None:
    blob = next(path for path in world.bundle_dir.iterdir() if path.name != "manifest.json")
    blob.write_bytes(blob.read_bytes() + b"x")


def remove_blob(world: World) -> None:
    next(path for path in world.bundle_dir.iterdir() if path.name != "manifest.json").unlink()


@pytest.mark.parametrize(
    ("harm", "said"), [(alter_blob, "has another digest"), (remove_blob, "lacks the")]
)
def test_a_bundle_that_is_not_whole_is_refused(
    world: World, harm: Callable[[World], None], said: str
) -> None:
    harm(world)
    assert said in world.verify(world.bundle_dir, code=ExitCode.FAILED)


def test_another_root_is_refused(world: World, tmp_path: Path) -> None:
    from edgefleet_cloud.trust.repositories.testing import founded

    world.root.write_bytes(founded(tmp_path / "other", world.services.clock).images.root_1)
    assert "refused: bundle:" in world.verify(world.bundle_dir, code=ExitCode.FAILED)


def test_a_mirror_that_was_altered_is_refused(world: World) -> None:
    mirror = world.mirror()
    path = max((mirror / "metadata").glob("*.releases.json"))
    path.write_bytes(path.read_bytes().replace(b"digits/r4", b"digits/r7"))
    shown = world.verify(world.bundle_dir, "--mirror", str(mirror), code=ExitCode.FAILED)
    assert "refused: bundle:" in shown


def test_a_statement_that_was_swapped_or_is_gone_is_refused(world: World) -> None:
    mirror = world.mirror()
    held = world.verified(world.bundle_dir)
    path = mirror / "files" / held["target"]["provenance"]
    path.write_bytes(path.read_bytes() + b" ")
    options = ("--mirror", str(mirror))
    shown = world.verify(world.bundle_dir, *options, code=ExitCode.FAILED)
    assert "another than the one that is listed" in shown
    path.unlink()
    assert "is missing" in world.verify(world.bundle_dir, *options, code=ExitCode.FAILED)


def foreign(world: World, envelope: Envelope) -> None:
    """Sign with a key that nobody vouches for."""
    envelope.signatures.clear()
    envelope.sign(CryptoSigner.generate_ed25519())


def unlike(world: World, envelope: Envelope) -> None:
    """State something of another file."""
    payload = json.loads(envelope.payload)
    payload["subject"] = [{"name": "x", "digest": {"sha256": "0" * 64}}]
    envelope.payload = json.dumps(payload).encode()
    envelope.sign(world.services.builder.signer)


def untyped(world: World, envelope: Envelope) -> None:
    """State something of another kind."""
    envelope.payload_type = "text/plain"
    envelope.sign(world.services.builder.signer)


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (foreign, "does not hold"),
        (unlike, "is about another bundle"),
        (untyped, "of another kind"),
    ],
)
def test_a_listed_statement_is_refused_if_it_does_not_hold(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[World, Envelope], None],
    said: str,
) -> None:
    """The image keys vouch for it, and still the builder's key and the subject must be right."""
    to_dict = Envelope.to_dict

    def forged(envelope: Envelope) -> Any:
        forge(world, envelope)
        return to_dict(envelope)

    monkeypatch.setattr(Envelope, "to_dict", forged)
    content = forge.__name__.encode()
    world.hub.release(forge.__name__, "1", 1, content)
    monkeypatch.undo()
    assert said in world.verify(world.model_file(content), code=ExitCode.FAILED)


def test_a_builder_key_can_be_trusted_besides(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CryptoSigner.generate_ed25519()
    pem = other._private_key.public_key().public_bytes(  # as an HSM would give it
        *_pem_form()
    )
    (world.folder / "other.pem").write_bytes(pem)
    monkeypatch.setattr(world.services.builder, "signer", other)
    world.hub.release("elsewhere", "1", 1, b"made elsewhere")
    path = world.model_file(b"made elsewhere")
    world.verify(path, code=ExitCode.FAILED)
    key = str(world.folder / "other.pem")
    assert world.verified(path, "--builder-key", key)["builder"] == other.public_key.keyid


def _pem_form() -> tuple[Any, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


def test_a_log_that_was_altered_is_refused(world: World) -> None:
    exported = world.log()
    exported.write_bytes(exported.read_bytes().replace(b"better", b"BETTER"))
    shown = world.verify(world.bundle_dir, "--audit", str(exported), code=ExitCode.FAILED)
    assert "the log of decisions does not hold" in shown


def test_a_hub_that_falls_silent_is_no_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(client: Client, path: str) -> bytes:
        raise CliError(f"{path}: no answer", ExitCode.UNREACHABLE)

    monkeypatch.setattr(Client, "content", silent)
    assert "no answer" in world.verify(world.bundle_dir, code=ExitCode.UNREACHABLE)


def test_wrong_use_is_said(world: World) -> None:
    world.verify(world.folder / "nothing", code=ExitCode.USAGE)
    world.verify(world.bundle_dir, "--mirror", str(world.folder), code=ExitCode.USAGE)
    world.root.unlink()
    shown = world.verify(world.bundle_dir, code=ExitCode.USAGE)
    assert "name it with --root" in shown


def test_only_manifests_and_statements_are_given_out(world: World) -> None:
    http = world.hub.http
    secret = world.services.store.put(b"a dataset")
    assert http.get(f"/v1/artifacts/{secret}/content").status_code == 404
    assert http.get("/v1/artifacts/nonsense/content").status_code == 422
    listed = http.get("/v1/artifacts").json()
    assert world.bundle.manifest in listed
    assert secret not in listed
