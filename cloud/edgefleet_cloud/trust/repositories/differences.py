"""What a draft changes, in sentences that a person reads before signing.

Whatever is signed shows here: a field without words of its own is shown as it stands.
"""

import datetime
from collections.abc import Mapping
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Role, Root, TargetFile, Targets

from edgefleet_cloud.trust.repositories.drafts import File
from edgefleet_cloud.trust.repositories.keyfiles import name_of
from edgefleet_protocol.identifiers import digest_of


def changes(draft: File, in_force: File | None) -> list[str]:
    """Return what a draft changes in what is in force; all of it if nothing is."""
    new, old = draft.signed, in_force.signed if in_force else None
    lines = []
    if isinstance(new, Root):
        known = old.keys if isinstance(old, Root) else {}
        lines += _roles(new.roles, old.roles if isinstance(old, Root) else {}, known | new.keys)
        lines += _keys(new.keys, known)
        if not isinstance(old, Root) or new.consistent_snapshot != old.consistent_snapshot:
            lines.append(f"consistent snapshots: {new.consistent_snapshot}")
    else:
        before = old if isinstance(old, Targets) else None
        lines += _targets(new.targets, before.targets if before else {})
        lines += _delegations(new, before)
    lines += _fields(new.unrecognized_fields, old.unrecognized_fields if old else {})
    until = f"valid until {_day(new.expires)}"
    if old is not None:
        until += f" (now {_day(old.expires)})"
    return [*lines, until]


def _day(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%d")


def _roles(new: Mapping[str, Role], old: Mapping[str, Role], keys: Mapping[str, Key]) -> list[str]:
    def key(keyid: str) -> str:
        return f"key {keyid[:16]} ({name_of(keys[keyid])})"

    lines = [f"role {name} is removed" for name in old.keys() - new.keys()]
    for name, role in new.items():
        before = old.get(name)
        if before is None or before.threshold != role.threshold:
            was = f" (now {before.threshold})" if before else ""
            lines.append(f"{name}: {role.threshold} of {len(role.keyids)} keys sign{was}")
        held = set(before.keyids) if before else set()
        lines += [f"{name}: {key(keyid)} is added" for keyid in role.keyids if keyid not in held]
        lines += [f"{name}: {key(i)} is removed" for i in sorted(held - set(role.keyids))]
        lines += _fields(role.unrecognized_fields, before.unrecognized_fields if before else {})
    return lines


def _keys(new: Mapping[str, Key], old: Mapping[str, Key]) -> list[str]:
    """Say which names go with which key ids; a name is a claim, the id is not."""
    return [
        f"key {keyid[:16]} is {key.keytype}, called {name_of(key)!r}"
        for keyid, key in new.items()
        if keyid not in old or old[keyid] != key
    ]


def _targets(new: Mapping[str, TargetFile], old: Mapping[str, TargetFile]) -> list[str]:
    lines = [f"removed: {path}" for path in old if path not in new]
    for path, target in new.items():
        if old.get(path) != target:
            what = "changed" if path in old else "added"
            hashes = ", ".join(f"{name} {value}" for name, value in target.hashes.items())
            lines.append(f"{what}: {path}, {target.length} bytes, {hashes}")
            lines.append(f"  {_custom(target.unrecognized_fields)}")
    return lines


def _custom(fields: Mapping[str, Any]) -> str:
    custom = fields.get("custom")
    if not isinstance(custom, dict) or set(fields) != {"custom"}:
        return repr(dict(fields))
    return ", ".join(f"{name} {value}" for name, value in custom.items())


def _delegations(new: Targets, old: Targets | None) -> list[str]:
    before, after = _delegated(old), _delegated(new)
    keys = new.delegations.keys if new.delegations else {}
    known = old.delegations.keys if old and old.delegations else {}
    lines = _roles(after, before, known | keys)
    for name, role in after.items():
        held = before.get(name)
        if held is None or (held.paths, held.terminating) != (role.paths, role.terminating):
            ends = "" if role.terminating else ", others may follow"
            lines.append(f"{name} signs {', '.join(role.paths or ['nothing'])}{ends}")
    if list(after) != list(before):
        lines.append(f"asked in this order: {', '.join(after)}")
    return lines + _keys(keys, known)


def _delegated(targets: Targets | None) -> Mapping[str, DelegatedRole]:
    if targets is None or targets.delegations is None:
        return {}
    return targets.delegations.roles or {}


def _fields(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    lines = [f"field {name} is removed" for name in old if name not in new]
    for name, value in new.items():
        if old.get(name) == value:
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        before = old.get(name)
        for part, content in parts:
            if not isinstance(before, dict) or before.get(part) != content:
                lines.append(f"field {name} {part}: {_short(content)}")
    return lines


def _short(value: object) -> str:
    """Return a value on one line; of long texts, such as certificates, their digest."""
    if isinstance(value, list):
        return f"{len(value)}: " + ", ".join(_short(item) for item in value)
    text = str(value)
    if len(text) <= 80 and text.isprintable():
        return text
    return f"SHA-256 {digest_of(text.encode())}"
