"""What is wrong in the fleet, and whose fault it is: one device, a cohort, or the world.

Rules, in this order:

1. *Faults first.* A device with a stuck feature is named, and takes no further part. So is a
   device that has shifted and departs from the other shifted devices: its leave-one-out distance
   from them is over `APART_EFFECT` and over `APART_RATIO` times the median of all such distances.
   (At least `MIN_PEERS` shifted devices are needed to say who is the odd one.)
2. Shares are of the devices that have a baseline and report now, faults left out. A feature that
   has shifted on at least half of them (and on two or more) is *fleet* drift.
3. Of the devices left, those that share a feature with 10 to 50 % of all are a *cohort*, named
   by the label that they and no others carry; else each is a finding of its own (*device*).
4. Below fleet scope, naming waits until the other devices have had one more look each and none of
   them is a suspect: devices report at different times, and the first of many is not the odd one.
5. Devices whose data differed from training from their first rows on are reported as
   `unlike-training`, with the same shares; that is no drift and sets no scope.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct

from edgefleet_cloud.monitoring import merge, statistics
from edgefleet_cloud.monitoring.merge import Profile, Sketch
from edgefleet_cloud.monitoring.watch import Flags
from edgefleet_protocol import drift

Scope = Literal["none", "device", "cohort", "fleet"]
Kind = Literal["stuck", "apart", "shift", "unlike-training"]

FLEET_SHARE = 0.5
COHORT_SHARE = 0.1
APART_EFFECT = 0.5
APART_RATIO = 3.0
MIN_PEERS = 3
# Flagged devices and labelled devices coincide when both overlap by at least so much.
LABEL_OVERLAP = 0.9
SCOPES: tuple[Scope, ...] = ("none", "device", "cohort", "fleet")
# Named in a text; a finding itself lists all.
NAMED = 6


@dataclass(frozen=True)
class View:
    """What is known of one device that reports now.

    Attributes:
        labels: with `board`, for naming cohorts.
        judged: its own baseline is complete.
        flags: None where nothing is suspected.
        looked_at: end of its newest look.
        sketch: rows of that look; at hand only for some flagged devices (`peers`).
    """

    device: str
    labels: Mapping[str, str]
    judged: bool
    flags: Flags | None
    looked_at: float
    sketch: Sketch | None = None


class FeatureFigures(Struct, frozen=True):
    """How far one feature of the finding's devices is from the training profile."""

    name: str
    psi: float
    effect: float
    ks: float


class Finding(Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        kind: `stuck`, `apart` (a shifted device unlike other shifted ones), `shift`, or
            `unlike-training`.
        label: `key=value` that names the cohort, else empty.
        since: when the earliest of its looks began, Unix seconds.
    """

    scope: Scope
    kind: Kind
    devices: list[str]
    features: list[FeatureFigures]
    text: str
    since: float
    label: str = ""


def judge(views: Sequence[View], profile: Profile) -> list[Finding]:
    """Name what is wrong; an empty list if nothing is.

    Args:
        views: of all devices that report on this version now.
        profile: of the version.
    """
    stuck = [view for view in views if view.flags and view.flags.stuck]
    findings = [_fault(view, "stuck", profile) for view in stuck]
    rest = [view for view in views if view not in stuck]
    apart = [view for view in rest if view.device in _apart(rest)]
    findings += [_fault(view, "apart", profile) for view in apart]
    peers = [view for view in rest if view not in apart]
    return findings + _shifts(peers, profile) + _habits(peers, profile)


def scope_of(findings: Sequence[Finding]) -> Scope:
    """Return the widest scope of the findings that are faults or drift."""
    found = [f.scope for f in findings if f.kind != "unlike-training"]
    return max(found, key=SCOPES.index, default="none")


# --- faults ---------------------------------------------------------------------------------------


def _apart(views: Sequence[View]) -> set[str]:
    shifted = [view for view in views if view.flags and view.flags.shifted and view.sketch]
    if len(shifted) <= MIN_PEERS:
        return set()
    features = sorted({index for view in shifted if view.flags for index in view.flags.shifted})
    counts = np.array([view.sketch.counts[features] for view in shifted if view.sketch])
    total = counts.sum(axis=0)
    distances = np.array([statistics.effect(own, total - own).clip(min=0).mean() for own in counts])
    limit = max(APART_EFFECT, APART_RATIO * float(np.median(distances)))
    return {view.device for view, far in zip(shifted, distances, strict=True) if far > limit}


def _fault(view: View, kind: Literal["stuck", "apart"], profile: Profile) -> Finding:
    assert view.flags is not None  # only flagged devices come here
    index = view.flags.stuck if kind == "stuck" else view.flags.shifted
    figures = _figures([view], index, profile)
    what = (
        "does not move any more" if kind == "stuck" else "has shifted, and not as the others have"
    )
    text = f"device {view.device}: {_names(figures)} {what}"
    return Finding("device", kind, [view.device], figures, text, view.flags.since)


# --- drift ----------------------------------------------------------------------------------------


def _shifts(views: Sequence[View], profile: Profile) -> list[Finding]:
    judged = [view for view in views if view.judged]
    left = [view for view in judged if view.flags and view.flags.shifted]
    findings = []
    wide: tuple[tuple[Scope, float], ...] = (("fleet", FLEET_SHARE), ("cohort", COHORT_SHARE))
    for scope, share in wide:
        if scope == "cohort":
            left = [view for view in left if _heard(view, judged)]
        features = _shared(left, len(judged), share)
        members = [v for v in left if v.flags and features.intersection(v.flags.shifted)]
        if members:
            findings.append(_drift(scope, members, judged, sorted(features), profile))
            left = [view for view in left if view not in members]
    for view in left:
        assert view.flags is not None  # `left` holds flagged devices only
        findings.append(_drift("device", [view], judged, view.flags.shifted, profile))
    return findings


def _shared(views: Sequence[View], total: int, share: float) -> set[int]:
    times = Counter(index for view in views if view.flags for index in view.flags.shifted)
    return {index for index, count in times.items() if count >= 2 and count >= share * total}


def _heard(view: View, judged: Sequence[View]) -> bool:
    """Tell whether all others have had the time to show what this device shows (rule 4)."""
    assert view.flags is not None  # only shifted devices are asked about
    heard_at = view.flags.confirmed_at + view.flags.spacing_s
    mine = set(view.flags.shifted)
    return all(
        other.looked_at >= heard_at
        and not (other.flags and mine.intersection(other.flags.suspects))
        for other in judged
        if other is not view and not (other.flags and other.flags.shifted)
    )


def _drift(
    scope: Scope,
    members: Sequence[View],
    judged: Sequence[View],
    features: Sequence[int],
    profile: Profile,
) -> Finding:
    figures = _figures(members, features, profile)
    devices = sorted(view.device for view in members)
    label = _label(members, judged) if scope == "cohort" else ""
    share = f"{len(devices)} of {len(judged)} devices"
    who = {
        "fleet": f"the fleet ({share})",
        "cohort": f"a cohort{f' ({label})' if label else ''} of {share}",
    }.get(scope, f"device {devices[0]} alone")
    text = f"{who} sees data that is new to the model: {_names(figures)}"
    since = min(view.flags.since for view in members if view.flags)
    return Finding(scope, "shift", devices, figures, text, since, label)


def _habits(views: Sequence[View], profile: Profile) -> list[Finding]:
    judged = [view for view in views if view.judged]
    unlike = [view for view in judged if view.flags and view.flags.unlike]
    if not unlike:
        return []
    share = len(unlike) / len(judged)
    wide: Scope = "fleet" if share >= FLEET_SHARE else "cohort"
    scope: Scope = "device" if len(unlike) == 1 or share < COHORT_SHARE else wide
    times = Counter(index for view in unlike if view.flags for index in view.flags.unlike)
    figures = _figures(unlike, [index for index, _ in times.most_common()], profile)
    devices = sorted(view.device for view in unlike)
    text = (
        f"{len(devices)} of {len(judged)} devices have differed from the training data since they"
        f" began with this version: {_names(figures)}"
    )
    since = min(view.flags.since for view in unlike if view.flags)
    return [Finding(scope, "unlike-training", devices, figures, text, since)]


def _label(members: Sequence[View], judged: Sequence[View]) -> str:
    """Return the `key=value` that (almost) all members and (almost) no others carry."""
    everywhere = Counter(item for view in judged for item in view.labels.items())
    inside = Counter(item for view in members for item in view.labels.items())
    for (key, value), count in inside.most_common():
        covers = count >= LABEL_OVERLAP * len(members)
        if covers and count >= LABEL_OVERLAP * everywhere[(key, value)]:
            return f"{key}={value}"
    return ""


def _figures(
    views: Sequence[View], features: Sequence[int], profile: Profile
) -> list[FeatureFigures]:
    """Return the features with their distance from training, the furthest first."""
    sketches = [view.sketch for view in views if view.sketch]
    index = list(features)
    counts = (
        merge.merge(sketches).counts[index] if sketches else np.zeros_like(profile.counts[index])
    )
    base = profile.counts[index]
    psi, effect, ks = (f(counts, base) for f in (drift.psi, statistics.effect, drift.ks))
    figures = [
        FeatureFigures(profile.features[i].name, *(round(float(x), 4) for x in values))
        for i, *values in zip(index, psi, effect, ks, strict=True)
    ]
    return sorted(figures, key=lambda figure: (-figure.effect, figure.name))


def _names(figures: Sequence[FeatureFigures]) -> str:
    names = [figure.name for figure in figures[:NAMED]]
    more = len(figures) - len(names)
    return ", ".join(names) + (f" and {more} more features" if more > 0 else "")
