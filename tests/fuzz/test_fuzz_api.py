"""A short pass over the HTTP API, always the same requests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import api
from tests.fuzz.targets import CORPUS

KEPT = sorted((CORPUS / "hub-api").iterdir())


@pytest.fixture(scope="module")
def hub() -> Iterator[api.Hub]:
    with api.in_process() as opened:
        yield opened


def test_the_api_does_what_its_document_says_whatever_is_sent(hub: api.Hub) -> None:
    tally = api.Api("hub-api", hub).run(examples=3)
    assert [finding.text for finding in tally.findings] == []
    assert tally.executions > 200
    assert tally.accepted > 20


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_a_request_that_once_failed_is_answered(path: Path, hub: api.Hub) -> None:
    tally = api.Api("hub-api", hub).replay(path.read_bytes())
    assert [finding.text for finding in tally.findings] == []
