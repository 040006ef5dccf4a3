"""Gathers what was measured: from the hub's API, and its own record of every window report."""

import time
from typing import Any

from sqlalchemy import func, select

from demo import world
from demo.report import Findings, Window
from demo.story import CAMERAS, MODEL, STUCK, Story
from edgefleet_cloud.database.models import ReportRecord, WindowRecord
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.settings import Settings

Json = dict[str, Any]


def gather(story: Story) -> Findings:
    """Return everything that the report shows. The hub must still be running."""
    assert story.hub is not None  # the story has been told
    database = Database(Settings(home=story.hub.home).sqlalchemy_url)
    try:
        with database.read() as session:
            windows = [
                Window(
                    row.received_at, row.device_id, row.version, row.labelled, row.correct, row.psi
                )
                for row in session.scalars(
                    select(WindowRecord)
                    .where(WindowRecord.model == MODEL)
                    .order_by(WindowRecord.received_at)
                )
            ]
            report_bytes = session.scalar(
                select(func.avg(ReportRecord.payload_bytes)).where(ReportRecord.kind == "window")
            )
    finally:
        database.close()
    api = story.hub.client
    model = api.get(f"/v1/models/{MODEL}")
    report: Json = {
        "devices": {"count": CAMERAS, "profiles": sorted({c.board for c in story.cameras})},
        "versions": [_version(version) for version in reversed(model["history"])],
        "rollouts": [_rollout(api.get(f"/v1/rollouts/{number}")) for number in story.rollouts],
        "drift": _drift(story, api.get("/v1/incidents", model=MODEL)),
        "accuracy": {
            "v1_before_shift": _accuracy(windows, "1", story, shifted=False),
            "v1_after_shift": _accuracy(windows, "1", story, shifted=True),
            "v2_after_shift": _accuracy(windows, "2", story, shifted=True),
        },
        "refused": story.refused,
        "bytes_per_report": float(report_bytes or 0),
        "seconds": time.time() - story.started_at,
    }
    return Findings(
        report, story.started_at, list(world.COLUMNS), story.shifted_at, windows, story.marks
    )


def _version(version: Json) -> Json:
    return {
        "version": version["version"],
        "variants": [
            {
                "format": variant["name"],
                "bytes": variant["model_bytes"],
                "transfer_bytes": variant["transfer_bytes"],
                "accuracy": variant["measured"]["score"],
                "sha256": variant["model_digest"],
            }
            for variant in version["variants"]
            if variant["state"] == "verified"
        ],
    }


def _rollout(rollout: Json) -> Json:
    return {
        "version": rollout["version"],
        "strategy": rollout["strategy"],
        "stages": [len(stage["devices"]) for stage in rollout["stages"]],
        "outcome": rollout["state"],
        "devices": sum(1 for part in rollout["devices"] if part["assigned_at"] is not None),
    }


def _drift(story: Story, incidents: list[Json]) -> Json:
    """Say what the hub saw, before and after the change of the world."""
    drifts = [i for i in incidents if i["kind"] == "drift" and i["scope"] in ("cohort", "fleet")]
    faults = [i for i in incidents if i["kind"] == "device-fault"]
    named = sorted({device for fault in faults for device in fault["devices"]})
    after = [i for i in drifts if i["opened_at"] >= story.shifted_at and i["version"] == "1"]
    return {
        "fleet_detected": any(i["scope"] == "fleet" for i in after),
        "fleet_false_alarm_before_shift": any(i["opened_at"] < story.shifted_at for i in drifts),
        "stuck_device": story.cameras[STUCK].name,
        # Naming more than the one that was broken is not naming it.
        "stuck_device_named": named[0] if len(named) == 1 else None,
        "scope": "fleet" if any(i["scope"] == "fleet" for i in after) else "none",
    }


def _accuracy(windows: list[Window], version: str, story: Story, *, shifted: bool) -> float:
    """Return the share of labelled rows that were right, of cameras under the new light.

    Before the change of the world the same cameras are taken, so that like is compared with like.
    """
    chosen = {camera.name for camera in story.shifted_cameras}
    held = [
        window
        for window in windows
        if window.version == version
        and window.device in chosen
        and (window.at >= story.settled_at if shifted else window.at < story.shifted_at)
    ]
    labelled = sum(window.labelled for window in held)
    return sum(window.correct for window in held) / labelled if labelled else 0.0
