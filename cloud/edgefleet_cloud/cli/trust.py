"""`edgefleet trust`: keys and who signs what, step by step (docs/trust.md).

`init`, `key`, and `sign --from` work on files alone, on a machine without the hub. Passphrases and
PINs come from a file, the environment or the terminal, never from an argument.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, Group, JsonFlag, console, show
from edgefleet_cloud.cli.verify import keep_files
from edgefleet_cloud.errors import HubError, InvalidError

if TYPE_CHECKING:  # the commands that sign load what they need
    from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

    from edgefleet_cloud.trust.repositories.exchange import Desk
    from edgefleet_cloud.trust.repositories.keys import Secrets

app = typer.Typer(cls=Group, no_args_is_help=True, help="Keys, and who signs what.")

KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", help="PEM file, hsm:, awskms:, gcpkms: or azurekms: URI; repeatable."),
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File with the passphrase or PIN, in its first line.")
]
Home = Annotated[
    Path | None, typer.Option(envvar="EDGEFLEET_HOME", help="Home of the hub, which must be down.")
]


@app.command()
def init(
    home: Home = None,
    root_keys: Annotated[int, typer.Option(min=1, max=16, help="Root keys to make.")] = 3,
    root_threshold: Annotated[int, typer.Option(min=1, help="Root keys that must sign.")] = 2,
    targets_keys: Annotated[int, typer.Option(min=1, max=16, help="Targets keys to make.")] = 3,
    targets_threshold: Annotated[int, typer.Option(min=1, help="Targets keys that must sign.")] = 2,
    root_key: Annotated[
        list[str] | None, typer.Option(help="A holder's .pub, or a key to sign with; repeatable.")
    ] = None,
    targets_key: Annotated[
        list[str] | None, typer.Option(help="Likewise for the targets role; repeatable.")
    ] = None,
    online_key: Annotated[
        list[str] | None, typer.Option(help="ROLE=URI of an online key that lies elsewhere.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Found a fleet: make or name its keys, and sign its first roots."""
    from edgefleet_cloud import hub, settings
    from edgefleet_cloud.trust.repositories import drafts, exchange, founding, keys

    folder = settings.load(home).home
    source = keys.terminal_secrets(passphrase_file)
    with _local():
        if founding.is_founded(folder):
            raise InvalidError(f"the fleet in {folder} is founded already; see `trust status`")
        given = {"root": root_key or [], "targets": targets_key or []}
        counts = {"root": root_keys, "targets": targets_keys}
        signers = _make_keys(
            folder, {role: counts[role] for role in given if not given[role]}, source
        )
        public = {role: [signer.public_key for signer in made] for role, made in signers.items()}
        for role, uris in given.items():
            public.setdefault(role, []).extend(keys.public_key(uri, source) for uri in uris)
        plan = founding.Plan(
            founding.Holders(public["root"], root_threshold),
            founding.Holders(public["targets"], targets_threshold),
            fleet=hub.first_fleet(folder, time.time),
            online=_online(online_key or [], source),
        )
        files = founding.first(folder, plan, time.time())
        here: list[Signer] = [signer for made in signers.values() for signer in made]
        here += [
            keys.load(uri, source)
            for uris in given.values()
            for uri in uris
            if not uri.endswith(".pub")
        ]
        drafts.sign(files, drafts.Held(), here)
        if all(drafts.is_signed(name, files, drafts.Held()) for name in files):
            founding.put_in_place(folder, files)
            console().print(f"the fleet in {folder} is founded: `edgefleet up`", markup=False)
            return
        exchange.write(folder / founding.FOUNDING, exchange.draft_files(files))
    console().print(
        f"the first files wait for signatures: take {folder / founding.FOUNDING} to each holder,"
        " who runs `edgefleet trust sign --from founding --key KEY`; bring it back and run"
        " `edgefleet up`",
        markup=False,
    )


def _make_keys(
    home: Path, counts: dict[str, int], source: "Secrets"
) -> "dict[str, list[CryptoSigner]]":
    """Make offline keys where no holder was named; role → its signers."""
    from edgefleet_cloud.trust.repositories import founding

    if not counts:
        return {}
    folder = home / founding.OFFLINE_KEYS
    chosen = source.get("the new offline keys") if source.unattended else None
    made = founding.make_offline_keys(folder, counts, chosen)
    console().print(f"made {sum(counts.values())} keys in {folder}", markup=False)
    return made


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="What people call it, as ann-1.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.pem and NAME.pub.")] = Path(),
    uri: Annotated[
        str | None, typer.Option("--from", help="Only write the .pub of this token or cloud key.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a key for a person, encrypted with a passphrase; NAME.pub is what you pass on."""
    from edgefleet_cloud.trust import durable
    from edgefleet_cloud.trust.repositories import keyfiles, keys

    source = keys.terminal_secrets(passphrase_file)
    with _local():
        path = out / f"{name}.pem"
        if uri is not None:
            public = keyfiles.label(keys.public_key(uri, source), name)
            durable.write(
                path.with_suffix(".pub"), keyfiles.public_bytes(public), mode=durable.PUBLIC
            )
        else:
            chosen = source.get(str(path)) if source.unattended else keys.ask_twice(str(path))
            public = keyfiles.make(path, name, chosen).public_key
    console().print(f"{path.with_suffix('.pub')}: key {public.keyid}", markup=False, soft_wrap=True)


@app.command()
def status(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """Show who signs what, what waits for whose signature, and what is due."""
    answer = connect(ctx).get("/v1/trust")
    if json_flag:
        show(answer, (), json_flag)
        return
    show([_role_row(role) for role in answer["roles"]], _ROLE_COLUMNS, json_flag)
    for draft in answer["drafts"]:
        console().print(
            f"\n{draft['name']} {draft['version']} waits for {draft['waits']}:", markup=False
        )
        for line in draft["changes"]:
            console().print(f"  {line}", markup=False, soft_wrap=True)
    for warning in answer["warnings"]:
        console().print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="Export to sign in, and to take signatures from.")],
    home: Home = None,
) -> None:
    """Replace lost online keys of a hub that cannot start; again, once the drafts are signed."""
    from edgefleet_cloud import settings
    from edgefleet_cloud.database.sessions import Database
    from edgefleet_cloud.trust.repositories import drafts, exchange, keys
    from edgefleet_cloud.trust.repositories.ceremonies import Ceremonies
    from edgefleet_cloud.trust.repositories.director import Director
    from edgefleet_cloud.trust.repositories.images import ImageRepository
    from edgefleet_cloud.trust.repositories.online import OnlineKeys

    configured = settings.load(home)
    source = keys.terminal_secrets()

    def online(name: str) -> OnlineKeys:
        return OnlineKeys.open(configured.home / name / "keys", configured.online_keys, source)

    with _local():
        images = ImageRepository.recover(configured.home / "images", time.time, online("images"))
        director = Director.recover(configured.home / "director", time.time, online("director"))
        database = Database(configured.sqlalchemy_url)
        ceremonies = Ceremonies(images, director, database, time.time)
        if (folder / exchange.DRAFTS).exists():
            for name, draft in exchange.lay_out(exchange.read(folder)).drafts.items():
                if draft.signatures and ceremonies.sign(name, drafts.payload_of(draft)):
                    console().print(f"{name}: in force", markup=False)
        if not ceremonies.replace_lost() and not ceremonies.drafts():
            console().print("no online key is lost: `edgefleet up`", markup=False)
            return
        present = ceremonies.drafts()
        exchange.write(folder, exchange.export(images, director))
    console().print(
        f"to be signed: {', '.join(sorted(present))}; run `edgefleet trust sign --from {folder}"
        " --key KEY` for each holder, then this command again",
        markup=False,
    )


@app.command()
def delegate(
    ctx: typer.Context,
    owner: Annotated[str, typer.Argument(help="Name of the model owner.")],
    model: Annotated[list[str], typer.Option(help="Model that it signs; repeatable.")],
    key: Annotated[list[str], typer.Option(help="The owner's .pub file; repeatable.")],
    threshold: Annotated[int, typer.Option(min=1, help="Keys that must sign.")] = 1,
    json_flag: JsonFlag = False,
) -> None:
    """Draft that an owner signs the bundles of some models, instead of the hub."""
    body = {"models": model, "keys": [_public(path) for path in key], "threshold": threshold}
    _drafted(connect(ctx).put(f"/v1/trust/owners/{owner}", body), json_flag)


@app.command()
def undelegate(
    ctx: typer.Context,
    owner: Annotated[str, typer.Argument(help="Name of the model owner.")],
    json_flag: JsonFlag = False,
) -> None:
    """Draft that the hub signs the bundles of an owner's models again."""
    _drafted(connect(ctx).post(f"/v1/trust/owners/{owner}/remove"), json_flag)


@app.command()
def rotate(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(help="director.online, image.online, one online role, a key, or ca."),
    ],
    new: Annotated[str | None, typer.Option(help=".pub file of the key that follows.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Draft that another key signs in place of a present one; `ca`: make a new authority."""
    if what == "ca":
        _show_authorities(connect(ctx).post("/v1/trust/authorities"), json_flag)
        return
    body = {"what": what, "new": None if new is None else _public(new)}
    _drafted(connect(ctx).post("/v1/trust/rotate", body), json_flag)


@app.command()
def revoke(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(help="Id of the key, its beginning, or its name.")],
    json_flag: JsonFlag = False,
) -> None:
    """Draft that a key signs nothing any more; an online key takes its neighbours with it."""
    _drafted(connect(ctx).post("/v1/trust/revoke", {"key": key}), json_flag)


@app.command()
def authorities(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """Show the hub's certificate authorities, and which devices do not know them yet."""
    _show_authorities(connect(ctx).get("/v1/trust/authorities"), json_flag)


@app.command()
def retire(
    ctx: typer.Context,
    fingerprint: Annotated[str, typer.Argument(help="Of an authority that issues no more.")],
    force: Annotated[bool, typer.Option(help="Although devices depend on it.")] = False,
    json_flag: JsonFlag = False,
) -> None:
    """Trust an older certificate authority no more, and delete its key."""
    body = {"fingerprint": fingerprint, "force": force}
    _show_authorities(connect(ctx).post("/v1/trust/authorities/retire", body), json_flag)


def _show_authorities(rows: list[dict[str, Any]], json_flag: bool) -> None:
    shown = (
        rows
        if json_flag
        else [
            row | {"unknown": len(row["unknown_to"]), "needed": len(row["needed_by"])}
            for row in rows
        ]
    )
    columns = {
        "fingerprint": "authority",
        "issues": "issues",
        "in_force": "signed for devices",
        "unknown": "unknown to",
        "needed": "needed by",
    }
    show(shown, columns, json_flag)


@app.command()
def renew(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="As image.root or image.owner-NAME.")],
    json_flag: JsonFlag = False,
) -> None:
    """Draft the next version of a file, for a longer life."""
    _drafted(connect(ctx).post(f"/v1/trust/drafts/{name}"), json_flag)


@app.command()
def discard(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the draft, as image.targets.")],
    json_flag: JsonFlag = False,
) -> None:
    """Forget a draft."""
    show(connect(ctx).post(f"/v1/trust/drafts/{name}/discard"), {"drafts": "remaining"}, json_flag)


@app.command()
def sign(
    ctx: typer.Context,
    key: KeyOption = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Sign in this exported folder, without a hub.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Show what there is to sign for these keys, ask, and sign it."""
    from edgefleet_cloud.trust.repositories import drafts, exchange, keys

    if not key:
        raise CliError("name at least one key with --key", ExitCode.USAGE)
    client = connect(ctx) if source is None else None
    with _local():
        files = exchange.read(source) if source is not None else _export(client)
        desk = exchange.lay_out(files)
        signers = [keys.load(uri, keys.terminal_secrets(passphrase_file)) for uri in key]
        wanted = _to_sign(desk, signers)
        _show_desk(desk, wanted)
        if not wanted:
            raise CliError("no draft waits for a signature of these keys")
        if not yes and not typer.confirm("Sign this?"):
            raise CliError("nothing was signed")
        done = drafts.sign(desk.drafts, desk.held, signers)
        signed = {name: desk.drafts[name] for name in sorted({name for name, _ in done})}
        if source is not None:
            exchange.write(source, files | exchange.draft_files(signed))
    if client is not None:
        _hand_in(client, exchange.draft_files(signed))
    else:
        console().print(f"signed in {source}: {', '.join(signed)}", markup=False)


@app.command("export")
def export_folder(
    ctx: typer.Context, folder: Annotated[Path, typer.Argument(help="To write into.")]
) -> None:
    """Write all public metadata and all drafts into a folder: a mirror, and to sign offline.

    With it go the manifests and statements that `edgefleet verify --mirror` needs.
    """
    from edgefleet_cloud.trust.repositories import exchange

    client = connect(ctx)
    files = _export(client)
    with _local():
        exchange.write(folder, files)
        desk = exchange.lay_out(files)
    keep_files(client, folder)
    _show_desk(desk, [])
    console().print(f"{len(files)} files in {folder}, {len(desk.drafts)} drafts", markup=False)


@app.command("import")
def import_folder(
    ctx: typer.Context, folder: Annotated[Path, typer.Argument(help="As `export` wrote it.")]
) -> None:
    """Hand in the signatures that were made in an exported folder."""
    from edgefleet_cloud.trust.repositories import exchange

    client = connect(ctx)
    with _local():
        brought = exchange.lay_out(exchange.read(folder)).drafts
        known = exchange.lay_out(_export(client)).drafts
    signed = {
        name: draft
        for name, draft in brought.items()
        if name in known and draft.signatures.keys() - known[name].signatures.keys()
    }
    if not signed:
        raise CliError(f"{folder} has no signature that the hub does not have")
    _hand_in(client, exchange.draft_files(signed))


_ROLE_COLUMNS = ("role", "signed by", "version", "until", "models")


def _role_row(role: Mapping[str, Any]) -> dict[str, Any]:
    until = role["expires_at"]
    who = ", ".join(item["name"] + ("*" if item["signed"] else "") for item in role["keys"])
    return {
        "role": role["name"],
        "signed by": f"the hub ({who})" if role["online"] else f"{role['threshold']} of {who}",
        "version": role["version"],
        "until": None if until is None else time.strftime("%Y-%m-%d", time.gmtime(until)),
        "models": role["models"],
    }


@contextmanager
def _local() -> Iterator[None]:
    """Turn errors of work on this machine into errors of the command."""
    try:
        yield
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except HubError as error:
        raise CliError(str(error)) from error


def _online(given: list[str], source: "Secrets") -> "dict[str, SSlibKey]":
    from edgefleet_cloud.trust.repositories import keys, layout

    found = {}
    for item in given:
        role, _, uri = item.partition("=")
        if role not in layout.ONLINE_ROLES or not uri:
            raise InvalidError(f"{item!r}: expected ROLE=URI, ROLE one of {layout.ONLINE_ROLES}")
        found[role] = keys.public_key(uri, source)
    return found


def _public(path: str) -> dict[str, Any]:
    from edgefleet_cloud.trust.repositories import keyfiles, keys

    with _local():
        public = keys.public_key(path, keys.terminal_secrets())
        body: dict[str, Any] = json.loads(keyfiles.public_bytes(public))
    return body


def _drafted(answer: Mapping[str, Any], json_flag: bool) -> None:
    show(answer, {"drafts": "to be signed"}, json_flag)
    if not json_flag:
        console().print(
            "See `edgefleet trust status`; sign with `edgefleet trust sign`.", markup=False
        )


def _export(client: Client | None) -> dict[str, bytes]:
    assert client is not None  # asked of a hub only
    files = client.get("/v1/trust/export")["files"]
    return {name: text.encode() for name, text in files.items()}


def _to_sign(desk: "Desk", signers: "list[Signer]") -> list[str]:
    """Return the drafts that these keys count for and have not signed."""
    from edgefleet_cloud.trust.repositories import drafts

    def counts(name: str) -> bool:
        counting = drafts.keys_of(name, desk.drafts, desk.held)
        held = {signer.public_key.keyid for signer in signers} & counting.keys()
        return bool(held - desk.drafts[name].signatures.keys())

    return [name for name in sorted(desk.drafts) if counts(name)]


def _show_desk(desk: "Desk", names: list[str]) -> None:
    from edgefleet_cloud.trust.repositories import status as standing

    out: Callable[..., None] = console().print
    for repository, digest in desk.root_digests.items():
        out(f"{repository} root 1 is SHA-256 {digest}", markup=False, soft_wrap=True)
    for name in names:
        draft = standing.draft_status(name, desk.drafts, desk.held)
        out(
            f"\n{name}, version {draft.version}; signatures missing: {draft.waits}",
            markup=False,
            soft_wrap=True,
        )
        for line in draft.changes:
            out(f"  {line}", markup=False, soft_wrap=True)


def _hand_in(client: Client, files: Mapping[str, bytes]) -> None:
    """Upload signed drafts, each on the path of its permission."""
    from edgefleet_cloud.trust.repositories import layout

    for file, data in files.items():
        name = Path(file).stem
        owner = layout.role_of(name).removeprefix(layout.OWNER_PREFIX)
        owned = layout.is_owner_role(layout.role_of(name))
        path = f"/v1/trust/owners/{owner}" if owned else f"/v1/trust/drafts/{name}"
        answer = client.post(f"{path}/signatures", {"file": data.decode()})
        said = "in force" if answer["in_force"] else "taken; more signatures are needed"
        console().print(f"{name}: {said}", markup=False)
