"""People for tests: accounts with tokens, made in a hub's database."""

from edgefleet_cloud.database.models import AccountKind, Model, Run, Variant, Version
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.people import accounts, tokens

NOW = 1_800_000_000.0
PASSWORD = "a horse, a staple and 3 boats"  # noqa: S105  # nobody's


def account(
    database: Database,
    name: str,
    *roles: str,
    kind: AccountKind = AccountKind.PERSON,
    password: str | None = None,
) -> str:
    """Make an account with these roles; return a token that may all that it may."""
    grants = [accounts.read_grant(text) for text in roles]
    with database.write() as session:
        accounts.create(session, name, kind, grants, NOW, password=password)
        return tokens.issue(session, name, "test", NOW)[1]


def version(
    database: Database, model: str = "door", number: str = "1", *, started_by: str = "maker"
) -> str:
    """Register a version with one verified variant, not decided on; return its manifest's digest.

    The run behind it was started by `started_by`.
    """
    manifest = f"{int(number):064x}"
    with database.write() as session:
        if session.get(Model, model) is None:
            session.add(Model(name=model, task="classification", created_at=0.0))
            session.flush()
        run = Run(
            model=model, trainer="import", parameters={}, seed=0, code="test", environment={},
            started_by=started_by, state="succeeded", created_at=0.0,
        )  # fmt: skip
        session.add(run)
        session.flush()
        row = Version(
            model=model, version=number, run_id=run.id, state="registered", reference="0" * 64,
            metrics={"accuracy": 0.9}, lineage={}, created_at=0.0,
        )  # fmt: skip
        session.add(row)
        session.flush()
        session.add(
            Variant(
                version_id=row.id, name="onnx-fp32", runtime="onnxruntime", state="verified",
                measured={"score": 0.9}, needs={"runtime": "onnxruntime", "min_version": "1.16"},
                model_bytes=1, transfer_bytes=1, manifest=manifest,
            )
        )  # fmt: skip
    return manifest
