"""The pages of who is signed in: approvals, own tokens, accounts, decisions, command lines."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import true
from sqlalchemy.orm import Session

from edgefleet_cloud.api.context import Hub, RowId, check
from edgefleet_cloud.database.models import AccountKind, Approval
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.trust.audit import chain, log
from edgefleet_cloud.trust.people import accounts, approvals, terminal, tokens
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.values import Json
from edgefleet_cloud.web.guard import FORM, PageRoute, Viewer, Visitor
from edgefleet_cloud.web.render import page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
DECISIONS = 100
Reason = Annotated[str, Form(max_length=approvals.MAX_REASON_LENGTH)]
Short = Annotated[str, Form(max_length=500)]


@router.get("/approvals")
def list_approvals(hub: Hub, viewer: Viewer, visitor: Visitor) -> Response:
    """Show what waits for people, and what they said."""
    check(visitor, Permission.READ)
    with hub.database.read() as session:
        rows = [approvals.view(session, row) for row in approvals.listing(session)]
    return page("approvals", viewer, {"rows": rows})


@router.get("/approvals/{approval_id}")
def show_approval(hub: Hub, viewer: Viewer, visitor: Visitor, approval_id: RowId) -> Response:
    """Show one question with all that a person needs to answer it."""
    check(visitor, Permission.READ)
    with hub.database.read() as session:
        asked = approvals.get(session, approval_id)
        return page("approval", viewer, _approval(session, asked, visitor))


@router.post("/approvals/{approval_id}", dependencies=FORM)
def answer_approval(
    hub: Hub,
    visitor: Visitor,
    approval_id: RowId,
    digest: Short,
    answer: Annotated[Literal["yes", "no"], Form()],
    reason: Reason = "",
) -> Response:
    """Say yes or no."""
    check(visitor, Permission.APPROVE)
    with hub.database.write() as session:
        approvals.speak(
            session,
            approval_id,
            visitor,
            yes=answer == "yes",
            digest=digest,
            reason=reason,
            now=hub.clock(),
        )
    hub.wake()
    return RedirectResponse(f"/approvals/{approval_id}", 303)


@router.get("/tokens")
def list_tokens(hub: Hub, viewer: Viewer, visitor: Visitor) -> Response:
    """Show one's own tokens."""
    return page("tokens", viewer, _tokens(hub, visitor, ""))


@router.post("/tokens", dependencies=FORM)
def create_token(
    hub: Hub,
    viewer: Viewer,
    visitor: Visitor,
    name: Short,
    days: Annotated[float, Form(gt=0)],
    permissions: Annotated[list[Permission] | None, Form()] = None,
    model: Short = "",
) -> Response:
    """Make a token and show it, this once."""
    with hub.database.write() as session:
        _, secret = tokens.issue(
            session,
            visitor.name,
            name,
            hub.clock(),
            life_s=days * tokens.DAY_S,
            permissions=permissions or None,
            model=model,
        )
    return page("tokens", viewer, _tokens(hub, visitor, secret))


@router.post("/tokens/{token_id}/revoke", dependencies=FORM)
def revoke_token(hub: Hub, visitor: Visitor, token_id: RowId) -> Response:
    """End a token."""
    with hub.database.write() as session:
        tokens.revoke(session, token_id, visitor, hub.clock())
    return RedirectResponse("/tokens", 303)


@router.get("/accounts")
def list_accounts(hub: Hub, viewer: Viewer, visitor: Visitor) -> Response:
    """Show all accounts to an admin."""
    check(visitor, Permission.ADMINISTER)
    with hub.database.read() as session:
        rows = [
            {
                "name": row.name,
                "kind": row.kind,
                "roles": accounts.roles(session, row.name),
                "created_at": row.created_at,
                "disabled_at": row.disabled_at,
            }
            for row in accounts.listing(session)
        ]
    return page("accounts", viewer, {"rows": rows})


@router.post("/accounts", dependencies=FORM)
def create_account(
    hub: Hub,
    visitor: Visitor,
    name: Short,
    kind: Annotated[AccountKind, Form()],
    roles: Short = "",
    password: Short = "",
) -> Response:
    """Make an account."""
    check(visitor, Permission.ADMINISTER)
    grants = [accounts.read_grant(text) for text in roles.split()]
    with hub.database.write() as session:
        accounts.create(session, name, kind, grants, hub.clock(), password=password or None)
    return RedirectResponse("/accounts", 303)


@router.post("/accounts/{name}", dependencies=FORM)
def change_account(
    hub: Hub, visitor: Visitor, name: str, action: Annotated[Literal["disable", "enable"], Form()]
) -> Response:
    """Disable or enable an account."""
    check(visitor, Permission.ADMINISTER)
    change = accounts.disable if action == "disable" else accounts.enable
    with hub.database.write() as session:
        change(session, name, "on the web page", hub.clock())
    return RedirectResponse("/accounts", 303)


@router.get("/decisions")
def list_decisions(hub: Hub, viewer: Viewer, visitor: Visitor) -> Response:
    """Show the last decisions of the log."""
    check(visitor, Permission.READ)
    with hub.database.read() as session:
        rows = [
            chain.decode(row.line) for row in log.find(session, true(), below=None, limit=DECISIONS)
        ]
    return page("decisions", viewer, {"rows": rows})


@router.get("/terminal")
def show_terminal(viewer: Viewer, visitor: Visitor) -> Response:  # noqa: ARG001  # has to be signed in
    """Ask for the code of a command line."""
    return page("terminal", viewer, {"asked": None, "said": ""})


@router.post("/terminal", dependencies=FORM)
def answer_terminal(
    hub: Hub,
    viewer: Viewer,
    visitor: Visitor,
    code: Short,
    answer: Annotated[Literal["look", "yes", "no"], Form()],
) -> Response:
    """Show who asks with this code; then allow or refuse it."""
    now = hub.clock()
    if answer == "look":
        with hub.database.read() as session:
            asked = terminal.find(session, code, now)
        return page("terminal", viewer, {"asked": asked, "said": ""})
    with hub.database.write() as session:
        terminal.decide(session, code, visitor, allowed=answer == "yes", now=now)
    said = "Done: the command line goes on by itself." if answer == "yes" else "It was refused."
    return page("terminal", viewer, {"asked": None, "said": said})


def _approval(session: Session, asked: Approval, visitor: Caller) -> Json:
    values: Json = {
        "row": approvals.view(session, asked),
        "may_speak": approvals.has_voice(session, asked, visitor),
        "version": None,
    }
    if asked.version:
        version = registry.get_version(session, asked.model, asked.version)
        ancestry = registry.ancestry(session, version)
        champion = registry.champion(session, asked.model)
        values |= {
            "version": version,
            "run": ancestry.run,
            "datasets": ancestry.datasets,
            "variants": registry.variants(session, version.id),
            "champion": champion.version if champion else None,
        }
    return values


def _tokens(hub: Hub, visitor: Caller, secret: str) -> Json:
    with hub.database.read() as session:
        rows = tokens.list_tokens(session, visitor.name)
    return {
        "rows": rows,
        "secret": secret,
        "now": hub.clock(),
        "permissions": sorted(visitor.permissions),
    }
