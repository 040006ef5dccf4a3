"""`edgefleet verify`: from a file back to the root of trust."""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.audit import home_of
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_cloud.errors import InvalidError

if TYPE_CHECKING:
    from edgefleet_cloud.trust.audit.tracing import RoleShown, Trace


def verify(
    ctx: typer.Context,
    artifact: Annotated[
        Path, typer.Argument(help="A model file, a manifest, a bundle's folder, a device's file.")
    ],
    root: Annotated[
        Path | None,
        typer.Option(help="Root metadata that you trust; else that of the hub's home here."),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(help="Folder of `edgefleet trust export`, instead of a hub."),
    ] = None,
    builder_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public builder key, PEM, to trust besides; may be repeated."),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="Exported log of decisions, instead of the hub's.")
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Show that a file is one of this fleet's, and where it came from.

    Exit codes: 0 verified; 1 refused: something does not hold; 5 not known to the image repository;
    2 wrong use; 3 no hub answers.
    """
    # What verifies is imported where it is needed: other commands do without.
    from edgefleet_cloud.trust.audit import artifacts, sources, tracing, verification
    from edgefleet_cloud.trust.audit.keys import public_key
    from edgefleet_cloud.trust.audit.mirror import FolderMirror

    client = None if mirror is not None else connect(ctx)
    trusted = root or home_of(ctx) / "images" / "1.root.json"
    try:
        files = _HubMirror(client) if client else FolderMirror(mirror or Path())
        keys = [public_key(_read(path, "builder key")) for path in builder_key or []]
        with tempfile.TemporaryDirectory() as folder:
            found = artifacts.read(artifact)
            data = _read(trusted, "root metadata (name it with --root)")
            held, fleet = tracing.trace(found, files, data, Path(folder), keys)
        subject = f"{held.target.model} {held.target.version}"
        lines: Iterable[bytes] | None = sources.lines(audit) if audit else None
        if lines is None and client is not None:
            lines = _lines(client.stream("/v1/audit/export", subject=subject))
        decided = None if lines is None else tracing.decisions(lines, fleet, subject)
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except tracing.NotKnownError as error:
        raise CliError(f"not known: {error}", ExitCode.NOT_KNOWN) from error
    except artifacts.RefusedArtifactError as error:
        raise CliError(f"refused: {error}") from error
    except verification.BrokenError as error:
        raise CliError(f"refused: the log of decisions does not hold: {error}") from error
    _show(held, decided, trusted, json_flag)


def keep_files(client: Client, folder: Path) -> int:
    """Keep the manifests and statements of all releases in a mirror; return how many are new.

    Raises:
        CliError: if the hub gives another file than it was asked for.
    """
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    missing = [name for name in client.get("/v1/artifacts") if not (files / name).exists()]
    for digest in missing:
        data = client.content(f"/v1/artifacts/{digest}/content")
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise CliError(f"the hub did not give the file {digest}")
        (files / digest).write_bytes(data)
    return len(missing)


class _HubMirror:
    """Implements `tracing.Mirror` over a hub's API."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def metadata(self, name: str) -> bytes | None:
        return self._client.content(f"/v1/trust/image/metadata/{name}")

    def content(self, digest: str) -> bytes | None:
        return self._client.content(f"/v1/artifacts/{digest}/content")

    def manifests_with(self, digest: str) -> Sequence[str]:
        found: list[str] = self._client.get(f"/v1/artifacts/{digest}")["manifests"]
        return found


def _show(
    held: "Trace", decided: list[dict[str, Any]] | None, trusted: Path, json_flag: bool
) -> None:
    import msgspec  # as above

    if json_flag:
        row = msgspec.to_builtins(held) | {"root": str(trusted), "decisions": decided}
        sys.stdout.write(json.dumps({"verified": True, **row}, indent=2) + "\n")
        return
    target = held.target
    first, newest = held.roots
    definition = held.statement["predicate"]["buildDefinition"]
    details = held.statement["predicate"]["runDetails"]
    rows: dict[str, Any] = {
        "file": f"{held.file} (sha256 {held.digest})",
        "manifest": held.manifest,
        "release": f"{target.model} r{target.release}: version {target.version},"
        f" {target.variant} for {target.runtime}",
        "listed as": held.path,
        "vouched for": " ← ".join(_role(item) for item in held.chain),
        "trusted": f"root {first} from {trusted}, walked to root {newest}",
        "made by": f"{details['metadata']['invocationId']}, {definition['buildType']},"
        f" signed by {held.builder[:12]}",
        "made from": [_material(item) for item in definition["resolvedDependencies"]],
        "asked for": definition["externalParameters"],
        "environment": definition["internalParameters"]["environment"],
    }
    if decided is not None:
        rows["decided"] = [_decision(item) for item in decided] or None
    sys.stdout.write("verified\n")
    output.show(rows, list(rows), json_flag=False)


def _role(item: "RoleShown") -> str:
    keys = ", ".join(keyid[:12] for keyid in item.signed)
    return f"{item.role} {item.version} ({len(item.signed)} of {item.threshold} needed: {keys})"


def _material(item: dict[str, Any]) -> str:
    facts = item.get("annotations", {})
    rows = f", {facts['rows']} rows, {facts['role']}" if "rows" in facts else ""
    return f"{item['name']} ({item['digest']['sha256'][:12]}{rows})"


def _decision(item: dict[str, Any]) -> str:
    why = f": {item['reason']}" if item["reason"] else ""
    return f"{item['number']} {item['action']} by {item['actor']}{why}"


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Give what comes in pieces as lines."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CliError(
            f"{path} cannot be read as {what}: {error.strerror}", ExitCode.USAGE
        ) from error
