"""Signs where variants came from, and puts the statements into the store.

Rules:

1. A verified variant is attested once, before it is first listed for devices: its release waits
   for it (`registry.image_entries`). The envelope's digest is in the signed image metadata, so the
   repository's own signatures vouch for these very bytes.
2. What the hub knows is stated, and nothing is filled in: a fact that is missing is left out.
3. A variant that cannot be attested (a file is gone) is logged and holds up only itself.
4. Keys stay in the hub: the processes that train and convert have none.
"""

import hashlib
import logging
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import msgspec
from securesystemslib.dsse import Envelope
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud import __version__
from edgefleet_cloud.database.models import Dataset, Job, Provenance, Run, Variant, Version
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import HubError
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.audit import log, provenance
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_cloud.trust.audit.provenance import Making, Material
from edgefleet_cloud.values import Json

# Attesting one takes milliseconds; a tick must stay short.
VARIANTS_A_TICK = 100
CODE_PACKAGES = ("edgefleet_cloud", "edgefleet_converters", "edgefleet_protocol")
logger = logging.getLogger(__name__)


def attest_due(database: Database, store: Store, builder: SigningKey, now: float) -> None:
    """Attest the verified variants that are not attested yet."""
    query = (
        select(Variant.id)
        .outerjoin(Provenance, Provenance.variant_id == Variant.id)
        .where(
            Variant.state == "verified",
            Variant.manifest.is_not(None),
            Provenance.variant_id.is_(None),
        )
        .order_by(Variant.id)
        .limit(VARIANTS_A_TICK)
    )
    with database.read() as session:
        due = list(session.scalars(query))
    for variant_id in due:
        try:
            with database.write() as session:
                attest(session, store, builder, variant_id, now)
        except HubError:
            logger.exception("variant %d cannot be attested; its releases wait", variant_id)


def attest(
    session: Session, store: Store, builder: SigningKey, variant_id: int, now: float
) -> Provenance:
    """Sign where one variant came from.

    Args:
        session: in a write transaction.
        store: gets the envelope.
        builder: signs.
        variant_id: a verified one.
        now: Unix seconds.
    """
    variant = session.get_one(Variant, variant_id)
    version = session.get_one(Version, variant.version_id)
    payload = provenance.statement(_making(session, variant, version, builder))
    envelope = Envelope(payload, provenance.PAYLOAD_TYPE, {})
    envelope.sign(builder.signer)
    digest = store.put(msgspec.json.encode(envelope.to_dict()))
    row = Provenance(variant_id=variant_id, digest=digest, keyid=builder.keyid)
    session.add(row)
    session.flush()
    after = {"variant": variant.name, "manifest": variant.manifest, "provenance": digest}
    log.record(session, "version.attest", f"{version.model} {version.version}", now, after=after)
    return row


def _making(session: Session, variant: Variant, version: Version, builder: SigningKey) -> Making:
    run = session.get_one(Run, version.run_id)
    job = session.scalar(
        select(Job)
        .where(Job.arguments["run_id"].as_integer() == run.id)
        .order_by(Job.id.desc())
        .limit(1)
    )
    arguments = job.arguments if job is not None else {}
    subjects = {f"{version.model}-{variant.name}.model": variant.model_digest}
    subjects[f"{version.model}-{variant.name}.manifest.json"] = variant.manifest
    return Making(
        subjects={name: digest for name, digest in subjects.items() if digest},
        build_type=run.trainer if run.trainer in ("import", "search") else "train",
        parameters=_parameters(run, version, variant, arguments),
        environment=run.environment,
        materials=list(_materials(session, run, arguments)),
        builder=builder.keyid,
        builder_version=__version__,
        invocation=f"run/{run.id}",
        started_at=job.started_at if job is not None else run.created_at,
        finished_at=run.finished_at,
        metrics={"model": version.metrics, "variant": variant.measured, "run": run.metrics},
    )


def _parameters(run: Run, version: Version, variant: Variant, arguments: Json) -> Json:
    asked = {
        "model": version.model,
        "version": version.version,
        "variant": variant.name,
        "trainer": run.trainer,
        "parameters": run.parameters,
        "seed": run.seed,
    }
    if variant.recipe:
        asked["recipe"] = variant.recipe
    return asked | {name: arguments[name] for name in ("budget", "label") if name in arguments}


def _materials(session: Session, run: Run, arguments: Json) -> Iterable[Material]:
    roles = {"training": run.dataset, "holdout": run.holdout, "guard": arguments.get("guard")}
    named = {digest: role for role, digest in reversed(roles.items()) if digest}
    waiting, seen = list(named), set()
    while waiting:
        digest = waiting.pop(0)
        dataset = session.get(Dataset, digest)
        if dataset is None or digest in seen:
            continue
        seen.add(digest)
        waiting.extend(dataset.parents)
        facts = {"role": named.get(digest, "ancestor"), "rows": dataset.rows}
        facts["source"] = dataset.source
        yield Material(f"dataset:{dataset.name}", digest, annotations=facts)
    code = run.code or f"edgefleet-cloud {__version__}"
    yield Material(
        "code", code_digest(), f"pkg:pypi/{code.replace(' ', '@')}", {"form": "edgefleet:code:1"}
    )
    if run.artifact:
        yield Material("fitted-model", run.artifact)
    champion = arguments.get("champion") or {}
    for name, manifest in sorted(champion.get("manifests", {}).items()):
        yield Material(f"champion:{champion['version']}/{name}", manifest)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the digest of the code that trains, converts and signs, as this process holds it.

    SHA-256 over one line a file, `<path> <sha256>` and a line feed, sorted by path, of every `.py`
    file of `CODE_PACKAGES`; the path begins with the package's name (form `edgefleet:code:1`).
    """
    lines = []
    for package in CODE_PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in folder.rglob("*.py"):
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
