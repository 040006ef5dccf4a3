"""Errors as HTTP answers: `{"error": "<a sentence for a person>"}` and one status code a family."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from edgefleet_cloud.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    HubError,
    InvalidError,
    LimitedError,
    NotFoundError,
    UnknownCallerError,
)
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol.errors import ProtocolError

logger = logging.getLogger(__name__)

# The nearest family decides, so a subclass may have a status of its own.
STATUS: dict[type[Exception], int] = {
    InvalidError: 422,
    ProtocolError: 422,
    BadInputError: 422,
    NotFoundError: 404,
    ConflictError: 409,
    UnknownCallerError: 401,
    DeniedError: 403,
    LimitedError: 429,
    DamagedError: 500,
    HubError: 500,
}


# What JSON can say and no database takes: half of a surrogate pair, NUL (PostgreSQL), and integers
# of more than 64 bits. Each is found at the database, whichever field of whichever route it was in.
_NOT_STORABLE = (UnicodeEncodeError, OverflowError, DataError)


class ErrorAnswer(BaseModel):
    """Why a request was not done."""

    error: str = Field(description="What was expected, what came, and what to do.")


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the one form."""
    for kind in STATUS:
        app.add_exception_handler(kind, lambda _request, error: known(error))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, lambda _request, error: busy(error))
    for kind in _NOT_STORABLE:
        app.add_exception_handler(kind, _not_storable)
    app.add_exception_handler(Exception, _unforeseen)


def answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the error answer; half characters that a request held are written as escapes."""
    said = text.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": said}, status, headers)


def known(error: Exception) -> JSONResponse:
    """Return the answer to an error of a family that `STATUS` names."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status >= 500:
        logger.error("request failed", exc_info=error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, LimitedError):
        headers["Retry-After"] = str(error.wait_s)
    return answer(status, str(error), headers)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    parts = [
        f"{'.'.join(str(step) for step in item['loc'])}: {item['msg']}" for item in error.errors()
    ]
    return answer(422, "; ".join(parts))


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return answer(error.status_code, error.detail, headers)


def busy(error: Exception) -> JSONResponse:
    """Return the answer of a hub whose database does not answer."""
    logger.error("the database did not answer", exc_info=error)
    return answer(503, "the hub's database does not answer; try again", {"Retry-After": "5"})


def _not_storable(_request: Request, error: Exception) -> JSONResponse:
    logger.warning("a request holds what the database cannot hold", exc_info=error)
    text = "a text with half a character or a NUL in it, or a number that is too large"
    return answer(422, f"the hub cannot store a value of this request: expected neither {text}")


def _unforeseen(_request: Request, _error: Exception) -> JSONResponse:
    # Starlette logs the traceback itself; nothing of it belongs in an answer.
    return answer(500, "the hub failed in a way that it did not foresee; its log has the details")
