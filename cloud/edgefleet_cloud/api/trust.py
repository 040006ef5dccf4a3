"""Keys and signed metadata over HTTP: how they stand, drafts, signatures; and an open mirror.

The mirror needs no login: it is what every device reads, and any TUF client can check it.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field
from securesystemslib.signer import SSlibKey

from edgefleet_cloud.api.context import Asker, Hub, allow, check
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.trust.repositories import exchange, keyfiles, layout, status
from edgefleet_cloud.trust.repositories.ceremonies import Ceremonies

router = APIRouter(prefix="/v1/trust", tags=["trust"])

# Signed: the bytes are given as they are.
_METADATA: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "TUF metadata.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
DraftName = Annotated[str, Path(description="As `image.root` or `image.targets`.", max_length=60)]
OwnerName = Annotated[str, Path(description="Of a model owner.", max_length=40)]


class KeyAnswer(BaseModel):
    """A key that may sign a role."""

    model_config = ConfigDict(from_attributes=True)
    keyid: str
    name: str
    signed: bool | None = Field(description="The file in force; null where the hub signs.")


class RoleAnswer(BaseModel):
    """A role in force."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    online: bool = Field(description="Whether the hub signs it by itself.")
    threshold: int
    keys: list[KeyAnswer]
    version: int | None = Field(description="Null where each device has its own.")
    expires_at: float | None
    models: list[str] = Field(description="Of an owner's role.")


class QuorumAnswer(BaseModel):
    """Signatures that a draft has and lacks, as one file above it counts them."""

    model_config = ConfigDict(from_attributes=True)
    by: str
    threshold: int
    signed: list[str]
    unsigned: list[str]
    missing: int


class DraftAnswer(BaseModel):
    """A file that people are to sign."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    version: int
    changes: list[str]
    quorums: list[QuorumAnswer]
    waits: str = Field(description="For what.")


class TrustAnswer(BaseModel):
    """How the trust of the fleet stands."""

    model_config = ConfigDict(from_attributes=True)
    roles: list[RoleAnswer]
    drafts: list[DraftAnswer]
    warnings: list[str]


class ExportAnswer(BaseModel):
    """What a person needs to sign without the hub, and what a mirror holds."""

    files: dict[str, str] = Field(description="Relative path → content.")


class PublicKey(BaseModel):
    """A public key, as a `.pub` file has it."""

    keyid: str = Field(max_length=64)
    name: str = Field(max_length=keyfiles.MAX_NAME)
    key: dict[str, Any] = Field(description="As in TUF metadata.")

    def value(self) -> SSlibKey:
        """Return the key, checked."""
        return keyfiles.read_public(self.model_dump_json(), f"the key {self.name!r}")


class DelegationBody(BaseModel):
    """Who signs the bundles of some models."""

    models: list[str] = Field(min_length=1, max_length=256)
    keys: list[PublicKey] = Field(min_length=1, max_length=32)
    threshold: int = Field(ge=1, le=32)


class RotationBody(BaseModel):
    """Which key gets a successor."""

    what: str = Field(description="An online role, `director.online`, or a key.", max_length=100)
    new: PublicKey | None = Field(None, description="Needed for a key of a person.")


class RevocationBody(BaseModel):
    """Which key signs nothing any more."""

    key: str = Field(description="Id, its beginning, or name.", max_length=100)


class SignatureBody(BaseModel):
    """A draft with more signatures."""

    file: str = Field(description="The draft as it was exported, signed.", max_length=8_000_000)


class DraftedAnswer(BaseModel):
    """What is to be signed now."""

    drafts: list[str]


class SignedAnswer(BaseModel):
    """What the signatures have done."""

    in_force: bool = Field(description="Whether anything went into force.")


@router.get("", dependencies=allow(Permission.READ))
def show_trust(hub: Hub) -> TrustAnswer:
    """Show who signs what, what waits for whose signature, and what is due."""
    found = status.status(hub.images, hub.director, hub.settings.home, hub.clock())
    return TrustAnswer.model_validate(found)


@router.get("/export", dependencies=allow(Permission.READ))
def export(hub: Hub) -> ExportAnswer:
    """Give all public metadata and all drafts."""
    files = exchange.export(hub.images, hub.director)
    return ExportAnswer(files={name: data.decode() for name, data in files.items()})


@router.put("/owners/{owner}", dependencies=allow(Permission.ADMINISTER))
def delegate(hub: Hub, owner: OwnerName, body: DelegationBody) -> DraftedAnswer:
    """Draft that an owner signs the bundles of these models, instead of the hub."""
    keys = [key.value() for key in body.keys]
    _ceremonies(hub).delegate(owner, body.models, keys, body.threshold)
    role = layout.owner_role(owner)
    return DraftedAnswer(drafts=[layout.draft_of(role), layout.TARGETS])


@router.post("/owners/{owner}/remove", dependencies=allow(Permission.ADMINISTER))
def undelegate(hub: Hub, owner: OwnerName) -> DraftedAnswer:
    """Draft that the hub signs the bundles of an owner's models again."""
    _ceremonies(hub).undelegate(owner)
    return DraftedAnswer(drafts=[layout.TARGETS])


@router.post("/rotate", dependencies=allow(Permission.ADMINISTER))
def rotate(hub: Hub, body: RotationBody) -> DraftedAnswer:
    """Draft that another key signs in place of a present one."""
    new = body.new.value() if body.new else None
    return DraftedAnswer(drafts=_ceremonies(hub).rotate(body.what, new))


@router.post("/revoke", dependencies=allow(Permission.ADMINISTER))
def revoke(hub: Hub, body: RevocationBody) -> DraftedAnswer:
    """Draft that a key signs nothing any more; of online keys, all of the repository."""
    return DraftedAnswer(drafts=_ceremonies(hub).revoke(body.key))


@router.post("/drafts/{name}", dependencies=allow(Permission.ADMINISTER))
def renew(hub: Hub, name: DraftName) -> DraftedAnswer:
    """Draft the next version of a file, for a longer life."""
    _ceremonies(hub).renew(name)
    return DraftedAnswer(drafts=[name])


@router.post("/drafts/{name}/discard", dependencies=allow(Permission.ADMINISTER))
def discard(hub: Hub, name: DraftName) -> DraftedAnswer:
    """Forget a draft; answers which remain."""
    ceremonies = _ceremonies(hub)
    ceremonies.discard(name)
    return DraftedAnswer(drafts=sorted(ceremonies.drafts()))


@router.post("/drafts/{name}/signatures", dependencies=allow(Permission.ADMINISTER))
def sign(hub: Hub, name: DraftName, body: SignatureBody) -> SignedAnswer:
    """Hand in signatures; what has enough of them goes into force."""
    return _sign(hub, name, body)


@router.post(
    "/owners/{owner}/signatures", dependencies=allow(Permission.RELEASE, model_in_body=True)
)
def sign_as_owner(hub: Hub, asker: Asker, owner: OwnerName, body: SignatureBody) -> SignedAnswer:
    """Hand in signatures for an owner's bundles; what has enough of them goes into force."""
    role = layout.owner_role(owner)
    for model in _ceremonies(hub).models_of(role):
        check(asker, Permission.RELEASE, model)
    return _sign(hub, layout.draft_of(role), body)


@router.get("/image/metadata/{name}", response_class=Response, responses=_METADATA)
def image_metadata(hub: Hub, name: Annotated[str, Path(max_length=100)]) -> Response:
    """Give a file of the image repository by its TUF name, as `3.root.json`. Needs no login."""
    return _file(hub.images.file(name), name)


@router.get("/director/root/{name}", response_class=Response, responses=_METADATA)
def director_root(hub: Hub, name: Annotated[str, Path(max_length=100)]) -> Response:
    """Give a version of the directors' root, as `1.root.json`. Needs no login."""
    number, _, rest = name.partition(".")
    known = rest == "root.json" and number.isascii() and number.isdigit() and len(number) <= 9
    return _file(hub.director.root(int(number)) if known else None, name)


def _ceremonies(hub: Services) -> Ceremonies:
    return Ceremonies(hub.images, hub.director, hub.database, hub.clock)


def _sign(hub: Services, name: str, body: SignatureBody) -> SignedAnswer:
    in_force = _ceremonies(hub).sign(name, body.file.encode())
    if in_force:
        hub.wake()
    return SignedAnswer(in_force=in_force)


def _file(data: bytes | None, name: str) -> Response:
    if data is None:
        raise NotFoundError("metadata file", name)
    return Response(data, media_type="application/json")
