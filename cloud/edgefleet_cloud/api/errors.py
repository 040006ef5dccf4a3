"""Errors as HTTP answers: `{"error": "<a sentence for a person>"}` and one status code a family."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from edgefleet_cloud.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    HubError,
    InvalidError,
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
    DamagedError: 500,
    HubError: 500,
}


class ErrorAnswer(BaseModel):
    """Why a request was not done."""

    error: str = Field(description="What was expected, what came, and what to do.")


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the one form."""
    for kind in STATUS:
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _busy)
    app.add_exception_handler(Exception, _unforeseen)


def answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the error answer."""
    return JSONResponse({"error": text}, status, headers)


def _known(_request: Request, error: Exception) -> JSONResponse:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status >= 500:
        logger.error("request failed", exc_info=error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
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


def _busy(_request: Request, error: Exception) -> JSONResponse:
    logger.error("the database did not answer", exc_info=error)
    return answer(503, "the hub's database does not answer; try again", {"Retry-After": "5"})


def _unforeseen(_request: Request, _error: Exception) -> JSONResponse:
    # Starlette logs the traceback itself; nothing of it belongs in an answer.
    return answer(500, "the hub failed in a way that it did not foresee; its log has the details")
