"""The list of attacks, and which test shows each.

Rules:

1. `NAMED` is the list; it comes from outside (the sources are cited at `Source`), so it is not made
   of the tests that happen to be there.
2. A test says which attack it is by the decorator `attack`, with literal arguments: they are read
   from its source, so nothing has to be imported to know them. Tests outside of this folder are
   listed in `ELSEWHERE`.
3. Each name has exactly one test, and the table in docs/security.md is made of what the tests say;
   test_register.py holds both.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "security.md"
BEGIN = "<!-- attacks: made by `python -m tests.attacks --write` -->"
END = "<!-- end of attacks -->"

_BROKERS = "trust/test_broker_policy.py"

Test = TypeVar("Test", bound=Callable[..., Any])


class Source(StrEnum):
    """Who names the attack; the value is the heading of its part of the table."""

    UPTANE = "Uptane Standard 2.1.0, section 4"
    DEMONSTRATION = "Uptane's demonstration"
    TUF = "The Update Framework, beyond Uptane's"
    SUIT = "SUIT, RFC 9124 section 4.2"
    EDGE = "Devices, brokers and models"


NAMED: dict[Source, tuple[str, ...]] = {
    Source.UPTANE: (
        "eavesdrop",
        "drop-request",
        "slow retrieval",
        "freeze",
        "partial bundle installation",
        "denial of service",
        "rollback",
        "endless data",
        "mix-and-match",
        "arbitrary software",
    ),
    Source.DEMONSTRATION: (
        "arbitrary package on the director without keys",
        "arbitrary package on the image repository without keys",
        "replay",
        "stolen director key",
        "both repositories compromised",
        "recovery by key revocation",
        "use of revoked keys",
    ),
    Source.TUF: (
        "extraneous dependencies",
        "fast-forward",
        "malicious mirrors",
        "key compromise",
        "wrong software",
    ),
    Source.SUIT: (
        "expired",
        "expired while offline",
        "incompatible image",
        "format",
        "wrong location",
        "replaced image",
        "not authenticated",
        "extra image",
        "disclosure",
        "wrong precursor",
        "unapproved",
        "redirect",
        "on-path",
        "manifest override",
        "manifest exposure",
        "manifest modification",
        "manifest time-of-check to time-of-use",
        "key exposure",
    ),
    Source.EDGE: (
        "stolen device certificate",
        "cloned device",
        "forged will",
        "client-id take-over",
        "retained-message leak",
        "claim-token replay",
        "downgrade of the wire version",
        "hostile lengths",
        "zip or path traversal in a bundle",
        "pickle in a bundle",
        "model that attacks its runtime",
    ),
}


@dataclass(frozen=True)
class Shown:
    """One attack, and the test that shows it.

    Attributes:
        stopped_by: what stops it, for the table.
        without: the check whose removal lets the attack succeed in the same test; where that cannot
            be shown, why not, after "not shown: ".
        test: file, below `tests/`, and function.
    """

    name: str
    source: Source
    stopped_by: str
    without: str
    test: str

    @property
    def succeeds_unchecked(self) -> bool:
        """Whether the test also shows the attack succeed."""
        return not self.without.startswith("not shown: ")


# Attacks whose test is with the part that stops them: on both kinds of broker, rule by rule.
ELSEWHERE = (
    Shown(
        "stolen device certificate",
        Source.EDGE,
        "revocation: the live connection is closed within a tick of the hub, and no other is let"
        " in. Until then, a thief may do what the device may, and no more",
        "the look at who is enrolled (the authority's signature alone)",
        f"{_BROKERS}::test_attack_stolen_device_certificate_after_revocation",
    ),
    Shown(
        "forged will",
        Source.EDGE,
        "a device may publish under its own `up/` alone, its last will included",
        "the permissions of a connection",
        f"{_BROKERS}::test_attack_forged_will",
    ),
    Shown(
        "client-id take-over",
        Source.EDGE,
        "a connection is let in only under the name of its certificate",
        "the comparison of client id and certificate",
        f"{_BROKERS}::test_attack_client_id_take_over",
    ),
    Shown(
        "retained-message leak",
        Source.EDGE,
        "a subscription to anything but one's own `down/` and `fleet/` is refused, so what the"
        " broker retains for others does not come either",
        "the permissions of a connection",
        f"{_BROKERS}::test_attack_retained_message_leak",
    ),
)


def attack(name: str, source: Source, *, stopped_by: str, without: str) -> Callable[[Test], Test]:
    """Say which attack a test shows; see `Shown`. All arguments are literals (rule 2)."""
    # Strings are checked here and by test_register; the mark lets one attack be run by -m.
    if name not in NAMED[source]:
        raise ValueError(f"{name!r} is none of the attacks of {source}")
    return pytest.mark.attack(name, stopped_by, without)


def shown() -> list[Shown]:
    """Return what the tests of this folder say of themselves, in the order of `NAMED`."""
    found = [one for path in sorted(HERE.glob("test_*.py")) for one in _read(path)]
    found += ELSEWHERE
    order = {(source, name): at for source, names in NAMED.items() for at, name in enumerate(names)}
    sources = list(Source)
    return sorted(found, key=lambda one: (sources.index(one.source), order[one.source, one.name]))


def table() -> str:
    """Return the part of docs/security.md that lists the attacks."""
    rows = shown()
    lines = [BEGIN, ""]
    for source in Source:
        lines += [f"### {source}", ""]
        lines += ["| attack | what stops it | succeeds without | test |", "|---|---|---|---|"]
        lines += [
            f"| {one.name} | {one.stopped_by} | {one.without} | `{one.test}` |"
            for one in rows
            if one.source is source
        ]
        lines.append("")
    count = sum(one.succeeds_unchecked for one in rows)
    total = (
        f"{len(rows)} attacks; for {count} of them the test shows the attack succeed against a part"
        " with that check removed, for the others the row says why not."
    )
    return "\n".join([*lines, total, "", END])


def _read(path: Path) -> Iterator[Shown]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "attack":
                name, source = call.args
                assert isinstance(source, ast.Attribute)
                said = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
                yield Shown(
                    ast.literal_eval(name),
                    Source[source.attr],
                    said["stopped_by"],
                    said["without"],
                    f"{HERE.name}/{path.name}::{node.name}",
                )
