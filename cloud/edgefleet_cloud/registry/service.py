"""The registry: models, their versions with variants, and what was released.

Rules:

1. A version is registered once, by the run that made it; its files are in the store before.
2. A version moves along `TRANSITIONS`; every decision keeps its reasons.
3. Only an approved version is released. Release numbers only grow within a model, and going back
   to an older version is a new release of it (docs/adr/0003).
"""

import contextlib
from dataclasses import dataclass

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Dataset,
    Job,
    Model,
    Provenance,
    Release,
    Run,
    Variant,
    Version,
    VersionState,
)
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.jobs.service import OPEN_STATES
from edgefleet_cloud.registry import signatures
from edgefleet_cloud.registry.choice import Candidate, rank
from edgefleet_cloud.registry.registration import Registration, VariantEntry
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.trust.repositories.images import ImageEntry
from edgefleet_cloud.values import Json
from edgefleet_protocol import trust
from edgefleet_protocol.identifiers import model_name
from edgefleet_protocol.manifest import Measured, Needs
from edgefleet_protocol.profiles import DeviceProfile

TRANSITIONS: dict[VersionState, frozenset[VersionState]] = {
    VersionState.REGISTERED: frozenset({VersionState.APPROVED, VersionState.REFUSED}),
    # A person may overrule a comparison.
    VersionState.REFUSED: frozenset({VersionState.APPROVED}),
    VersionState.APPROVED: frozenset({VersionState.RETIRED}),
    VersionState.RETIRED: frozenset(),
}
_DECISIONS = {
    VersionState.REGISTERED: "register",
    VersionState.APPROVED: "approve",
    VersionState.REFUSED: "refuse",
    VersionState.RETIRED: "retire",
}


def reserve(session: Session, model: str) -> str:
    """Return the number of the model's next version.

    Numbers of registered versions and those given to open jobs are passed over, so two jobs of one
    model never make the same version. The caller submits its job in the same transaction.

    Raises:
        MalformedError: if `model` is no model name.
    """
    model_name(model)
    taken = list(session.scalars(select(Version.version).where(Version.model == model)))
    for arguments in session.scalars(select(Job.arguments).where(Job.state.in_(OPEN_STATES))):
        if arguments.get("model") == model and "version" in arguments:
            taken.append(arguments["version"])
    return str(1 + max((int(version) for version in taken), default=0))


def register(
    session: Session, store: Store, registration: Registration, run_id: int, now: float
) -> Version:
    """Enter a converted model as a version with its variants.

    Registering what the same run has registered already gives that version back.

    Args:
        session: in a write transaction.
        store: holds every file that the registration names.
        registration: from `registration.store_result`.
        run_id: the run that made it.
        now: Unix seconds.

    Raises:
        InvalidError: if the model is of another task, or not one variant is verified.
        ConflictError: if another run has registered this version.
        NotFoundError: if the store lacks a file.
    """
    model = session.get(Model, registration.model)
    if model is None:
        model = Model(name=registration.model, task=registration.task, created_at=now)
        session.add(model)
        session.flush()
    if model.task != registration.task:
        raise InvalidError(
            f"model {model.name} is for {model.task}; this version is for {registration.task}."
            " Register it under another name"
        )
    known = _find(session, registration.model, registration.version)
    if known is not None:
        if known.run_id == run_id:
            return known
        raise ConflictError(
            f"{known.model} {known.version} was registered by run {known.run_id}, not {run_id}"
        )
    _check_files(store, registration)
    version = Version(
        model=registration.model,
        version=registration.version,
        run_id=run_id,
        state=VersionState.REGISTERED,
        reference=registration.reference,
        metrics=registration.metrics,
        lineage=msgspec.to_builtins(registration.lineage),
        created_at=now,
    )
    session.add(version)
    session.flush()
    session.add_all(_variant(version.id, entry) for entry in registration.variants)
    session.flush()
    audit.record(
        session,
        "version.register",
        f"{version.model} {version.version}",
        now,
        after={
            "state": version.state,
            "run": run_id,
            "manifests": {entry.name: entry.manifest for entry in registration.variants},
            "metrics": registration.metrics,
        },
    )
    return version


def decide(
    session: Session, model: str, version: str, state: VersionState, decision: Json, now: float
) -> Version:
    """Move a version to `state` and keep why. Doing it again changes only the decision.

    Approving a version of a high-risk model asks people about its release (`approvals`).

    Raises:
        NotFoundError: if there is no such version.
        ConflictError: if the table does not allow the move.
    """
    row = get_version(session, model, version)
    held = VersionState(row.state)
    if state is not held and state not in TRANSITIONS[held]:
        allowed = ", ".join(sorted(TRANSITIONS[held])) or "nothing"
        raise ConflictError(
            f"{model} {version} is {held} and cannot become {state}; allowed: {allowed}"
        )
    row.state, row.decision = state, decision
    session.flush()
    audit.record(
        session,
        f"version.{_DECISIONS[state]}",
        f"{model} {version}",
        now,
        before={"state": held},
        after={"state": state, "decision": decision},
        reason=str(decision.get("reason", "")),
    )
    if state is VersionState.APPROVED:
        approvals.ask(session, row, now, reason=str(decision.get("reason", "")))
    return row


def approve(session: Session, model: str, version: str, decision: Json, now: float) -> Version:
    """Allow a version to be released."""
    return decide(session, model, version, VersionState.APPROVED, decision, now)


def refuse(session: Session, model: str, version: str, decision: Json, now: float) -> Version:
    """Keep a version from being released."""
    return decide(session, model, version, VersionState.REFUSED, decision, now)


def release(
    session: Session,
    model: str,
    version: str,
    reason: str,
    now: float,
    *,
    challenge: bool = False,
    way_back: bool = False,
) -> Release:
    """Make an approved version available to devices under the model's next release number.

    Args:
        session: in a write transaction.
        model: of the version.
        version: an approved one.
        reason: for whoever reads the list of releases.
        now: Unix seconds.
        challenge: only to run beside the champion.
        way_back: devices ran it before the release that is taken back; people are not asked again.

    Raises:
        NotFoundError: if there is no such version.
        ConflictError: if it is not approved, by two people where the model is of high risk.
    """
    row = get_version(session, model, version)
    if row.state != VersionState.APPROVED:
        raise ConflictError(
            f"{model} {version} is {row.state}; only an approved version is released"
        )
    if not way_back:
        approvals.require(session, row)
    newest = session.scalar(select(func.max(Release.number)).where(Release.model == model))
    made = Release(
        model=model,
        number=1 + (newest or 0),
        version_id=row.id,
        reason=reason[:500],
        created_at=now,
        challenge=challenge,
        waits_for=signatures.owner_of(session, model),
    )
    session.add(made)
    session.flush()
    audit.record(
        session,
        "release.create",
        f"{model} {version}",
        now,
        after={"release": made.number, "challenge": challenge},
        reason=reason,
    )
    return made


def sign_ahead(session: Session, back: Release, ahead_of: int, now: float) -> None:
    """Release an owner's version again, to be signed together with the release that follows it.

    So that going back needs nobody's signature in a hurry. Nothing happens for a model that has no
    owner, or if the version may not be released any more.

    Args:
        session: in a write transaction.
        back: a release of the version to go back to.
        ahead_of: number of the release that it is the way back from.
        now: Unix seconds.
    """
    version = session.get_one(Version, back.version_id)
    owned = signatures.owner_of(session, version.model)
    if owned and _later(session, version, ahead_of) is None:
        with contextlib.suppress(ConflictError):
            release(
                session,
                version.model,
                version.version,
                f"the way back from release {ahead_of}",
                now,
                challenge=True,
                way_back=True,
            )


def signed_ahead(session: Session, version: Version, ahead_of: int) -> Release | None:
    """Return the release of `sign_ahead`, for use, if its owner has signed it."""
    if not signatures.owner_of(session, version.model):
        return None
    found = _later(session, version, ahead_of)
    if found is None or found.waits_for:
        return None
    found.challenge = False
    return found


def _later(session: Session, version: Version, number: int) -> Release | None:
    query = select(Release).where(
        Release.model == version.model,
        Release.version_id == version.id,
        Release.number > number,
    )
    return session.scalar(query.order_by(Release.number.desc()).limit(1))


def get_version(session: Session, model: str, version: str) -> Version:
    """Return one version.

    Raises:
        NotFoundError: if there is none.
    """
    row = _find(session, model, version)
    if row is None:
        raise NotFoundError("version", f"{model} {version}")
    return row


def champion(session: Session, model: str) -> Version | None:
    """Return the version of the model's newest release, None before the first.

    Releases that were made for a challenge do not count until they are rolled out.
    """
    return session.scalar(
        select(Version)
        .join(Release, Release.version_id == Version.id)
        .where(Release.model == model, Release.challenge.is_(False))
        .order_by(Release.number.desc())
        .limit(1)
    )


def variants(session: Session, version_id: int) -> list[Variant]:
    """Return all variants of a version, refused ones too, in the order of their registration."""
    return list(
        session.scalars(
            select(Variant).where(Variant.version_id == version_id).order_by(Variant.id)
        )
    )


def variants_for(
    session: Session, model: str, release: int, profile: DeviceProfile
) -> list[Variant]:
    """Return the verified variants of a release that fit a device, best first (`choice`).

    Raises:
        NotFoundError: if there is no such release.
    """
    row = session.get(Release, (model, release))
    if row is None:
        raise NotFoundError("release", f"{model} r{release}")
    return fitting(variants(session, row.version_id), profile)


def fitting(offered: list[Variant], profile: DeviceProfile) -> list[Variant]:
    """Return those of the variants that are verified and fit a device, best first (`choice`)."""
    held = {item.name: item for item in offered}
    candidates = [
        Candidate(
            item.name,
            msgspec.convert(item.needs, Needs),
            msgspec.convert(item.measured, Measured),
            item.transfer_bytes,
        )
        for item in offered
        if item.state == "verified"
    ]
    return [held[name] for name in rank(candidates, profile)]


def image_entries(session: Session, store: Store) -> dict[str, ImageEntry]:
    """Return what the image repository has to list: every verified variant of every release.

    A variant comes in when it is known, and signed, where it came from (`trust.audit.attesting`).
    """
    query = (
        select(Release, Version, Variant, Provenance.digest)
        .join(Version, Release.version_id == Version.id)
        .join(Variant, Variant.version_id == Version.id)
        .join(Provenance, Provenance.variant_id == Variant.id)
        .where(Variant.state == "verified", Variant.manifest.is_not(None))
    )
    entries = {}
    for row, version, variant, provenance in session.execute(query):
        assert variant.manifest is not None
        needs = msgspec.convert(variant.needs, Needs)
        target = trust.ImageTarget(
            model=row.model,
            version=version.version,
            variant=variant.name,
            release=row.number,
            runtime=needs.runtime,
            boards=needs.boards,
            provenance=provenance,
        )
        path = trust.target_path(row.model, row.number, variant.name)
        entries[path] = ImageEntry(store.size(variant.manifest), variant.manifest, target)
    return entries


@dataclass(frozen=True)
class Ancestry:
    """Where a version came from.

    Attributes:
        datasets: every dataset that had a part, nearest first.
    """

    run: Run
    datasets: list[Dataset]


def ancestry(session: Session, version: Version) -> Ancestry:
    """Return the run of a version and all datasets behind that run, back to the first."""
    run = session.get_one(Run, version.run_id)
    found: dict[str, Dataset] = {}
    waiting = [digest for digest in (run.dataset, run.holdout) if digest]
    while waiting:
        digest = waiting.pop(0)
        dataset = session.get(Dataset, digest)
        if dataset is not None and digest not in found:
            found[digest] = dataset
            waiting.extend(dataset.parents)
    return Ancestry(run, list(found.values()))


def get_model(session: Session, name: str) -> Model:
    """Return one model.

    Raises:
        NotFoundError: if there is none of this name.
    """
    row = session.get(Model, name)
    if row is None:
        raise NotFoundError("model", name)
    return row


def list_models(session: Session) -> list[Model]:
    """Return all models by name."""
    return list(session.scalars(select(Model).order_by(Model.name)))


def versions(session: Session, model: str) -> list[Version]:
    """Return the versions of a model, newest first."""
    query = select(Version).where(Version.model == model).order_by(Version.id.desc())
    return list(session.scalars(query))


def releases(session: Session, model: str) -> list[Release]:
    """Return the releases of a model, newest first."""
    query = select(Release).where(Release.model == model).order_by(Release.number.desc())
    return list(session.scalars(query))


def _find(session: Session, model: str, version: str) -> Version | None:
    return session.scalar(select(Version).where(Version.model == model, Version.version == version))


def _check_files(store: Store, registration: Registration) -> None:
    verified = [entry for entry in registration.variants if entry.state == "verified"]
    if not verified:
        raise InvalidError(
            f"not one variant of {registration.model} {registration.version} is verified"
        )
    for digest in [registration.reference, *(entry.manifest for entry in verified)]:
        if digest is None or not store.has(digest):
            raise NotFoundError("stored file", digest)


def _variant(version_id: int, entry: VariantEntry) -> Variant:
    return Variant(version_id=version_id, **msgspec.structs.asdict(entry))
