"""What every router needs: the hub's services, who calls, and what they may.

A route says what it needs with `dependencies=allow(Permission.X)`. Where its path names a model,
that model counts; where the model is in the body, the route says `allow(..., model_in_body=True)`
and calls `check` with it; otherwise the permission is needed for the whole fleet.
"""

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from edgefleet_cloud.api.authentication import CSRF_HEADER, Shown
from edgefleet_cloud.errors import DeniedError, UnknownCallerError
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.roles import Permission

# Only described here; `api.authentication` has read it long before.
_bearer = HTTPBearer(auto_error=False, description="API token, from `edgefleet login`")


def services(request: Request) -> Services:
    """Return the services of the running hub."""
    held: Services = request.app.state.services
    return held


def caller(request: Request) -> Caller:
    """Return who calls.

    Raises:
        UnknownCallerError: if nobody does.
        DeniedError: if a foreign page may have made the browser send this.
    """
    shown: Shown = request.state.shown
    if shown.caller is None:
        raise UnknownCallerError(
            shown.problem or "this needs a token (Authorization: Bearer <token>); `edgefleet login`"
        )
    if not shown.csrf_passed:
        raise DeniedError(f"with a cookie this needs the session's token in {CSRF_HEADER} too")
    return shown.caller


def check(asker: Caller, permission: Permission, model: str = "") -> None:
    """Refuse a caller who may not do this to `model`, or to the whole fleet without one.

    Raises:
        DeniedError: naming the permission.
    """
    if not asker.may(permission, model):
        where = f" for {model}" if model else ""
        raise DeniedError(f"{asker.name} has not the permission to {permission}{where}")


def allow(*permissions: Permission, model_in_body: bool = False) -> list[Any]:
    """Return the dependencies of a route that needs all of these permissions.

    Args:
        *permissions: each needed.
        model_in_body: the route itself checks them for the model that its body names.
    """

    def permitted(request: Request, asker: Annotated[Caller, Depends(caller)]) -> None:
        for permission in permissions:
            if not (model_in_body and permission in asker.permissions):
                check(asker, permission, request.path_params.get("model", ""))

    return [Depends(_bearer), Depends(permitted)]


Hub = Annotated[Services, Depends(services)]
Asker = Annotated[Caller, Depends(caller)]
# A row's number in a path. SQLite's integers have 64 bits, PostgreSQL's keys 32; what is larger is
# refused here, before the database is asked with a number that it cannot hold.
RowId = Annotated[int, Path(ge=1, le=2**31 - 1)]
