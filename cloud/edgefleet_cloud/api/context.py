"""What every router needs: the hub's services and the check of who calls."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from edgefleet_cloud.errors import UnknownCallerError
from edgefleet_cloud.services import Services

_bearer = HTTPBearer(auto_error=False, description="Operator token, from `admin.token`")


def services(request: Request) -> Services:
    """Return the services of the running hub."""
    held: Services = request.app.state.services
    return held


def operator(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let only the holder of the operator token pass.

    Raises:
        UnknownCallerError: without the token, or with another one.
    """
    token: str = request.app.state.operator_token
    if credentials is None or not hmac.compare_digest(
        credentials.credentials.encode(), token.encode()
    ):
        raise UnknownCallerError("this needs the operator token: Authorization: Bearer <token>")


Hub = Annotated[Services, Depends(services)]
OPERATOR = [Depends(operator)]
