"""A fleet for tests: devices, versions and reports as rows of a real database, without a network.

`Fleet` plays both the registry's and the agents' part: it makes versions whose bundles are a few
bytes, and lets devices follow their orders (or fail, or say nothing) as agents would report it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Desired,
    Device,
    DeviceState,
    DirectorRecord,
    Model,
    ReportRecord,
    ResultRecord,
    Run,
    SampleRecord,
    Variant,
    Version,
    VersionState,
    WindowRecord,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.rollouts import figures
from edgefleet_cloud.storage import Store
from edgefleet_protocol.manifest import Measured, Needs
from edgefleet_protocol.messages import Attempt, Slot, State, Step

Behaviour = Literal["confirm", "fail", "silent", "fetch", "wait", "confirm-silently"]
VARIANTS = {"onnxruntime": "onnx-int8", "litert": "tflite-int8"}
BUNDLE_BYTES = 1000


class Fleet:
    """Devices and versions of one model in a database.

    Args:
        database: to write to.
        store: gets the manifests and reference profiles.
        clock: the time now.
        model: name of the model.
    """

    def __init__(
        self, database: Database, store: Store, clock: Callable[[], float], model: str = "digits"
    ) -> None:
        self.database = database
        self.store = store
        self.clock = clock
        self.model = model
        with database.write() as session:
            session.add(Model(name=model, task="classification", created_at=clock()))

    def add_devices(
        self, count: int, *, runtimes: Sequence[str] = ("onnxruntime",), **labels: str
    ) -> list[str]:
        """Enrol devices `cam-00`, `cam-01`, …, the runtimes taking turns; return their ids."""
        with self.database.write() as session:
            start = session.scalar(select(func.count()).select_from(Device)) or 0
            names = [f"cam-{number:02}" for number in range(start, start + count)]
            for index, name in enumerate(names):
                session.add(
                    Device(
                        id=name,
                        state=DeviceState.ENROLLED,
                        board="rpi4",
                        runtimes={runtimes[index % len(runtimes)]: "1.30"},
                        memory_bytes=2**30,
                        labels=labels,
                        reported={},
                        last_seen_at=self.clock(),
                        created_at=self.clock(),
                    )
                )
        return names

    def add_version(
        self, version: str, *, reference: bytes = b"", state: VersionState = VersionState.APPROVED
    ) -> int:
        """Register a version with one variant a runtime; return its row's id."""
        with self.database.write() as session:
            run = Run(
                model=self.model, trainer="import", parameters={}, seed=0, code="test",
                environment={}, state="succeeded", created_at=self.clock(),
            )  # fmt: skip
            session.add(run)
            session.flush()
            row = Version(
                model=self.model, version=version, run_id=run.id, state=state,
                reference=self.store.put(reference), metrics={}, lineage={},
                created_at=self.clock(),
            )  # fmt: skip
            session.add(row)
            session.flush()
            session.add_all(
                self._variant(row.id, version, runtime, name) for runtime, name in VARIANTS.items()
            )
            return row.id

    def add_variant(self, version_id: int, version: str, runtime: str, name: str) -> None:
        """Register one more verified variant of a version."""
        with self.database.write() as session:
            session.add(self._variant(version_id, version, runtime, name))

    def manifest(self, version: str, variant: str) -> str:
        """Return the digest of a variant's manifest."""
        return self.store.put(f"{self.model} {version} {variant}".encode())

    def _variant(self, version_id: int, version: str, runtime: str, name: str) -> Variant:
        needs = Needs(runtime="litert" if runtime == "litert" else "onnxruntime", runtime_min="1.0")
        measured = Measured(parity_max=0.0, agreement=1.0, latency_us=100.0, score=0.97)
        return Variant(
            version_id=version_id, name=name, runtime=runtime, state="verified", reason=None,
            measured=msgspec.to_builtins(measured), needs=msgspec.to_builtins(needs),
            model_digest=None, model_bytes=BUNDLE_BYTES, transfer_bytes=BUNDLE_BYTES,
            manifest=self.manifest(version, name),
        )  # fmt: skip

    # --- what agents do -------------------------------------------------------------------------

    def follow_orders(
        self, behaviour: Mapping[str, Behaviour] | None = None, default: Behaviour = "confirm"
    ) -> list[str]:
        """Let every device with a new order act on it; return those devices.

        `confirm` runs what was ordered and reports it, `fail` goes back to what it ran and reports
        that, `fetch` says that it is fetching, `wait` that it waits for its window,
        `confirm-silently` loses its result report (only its state arrives), `silent` says nothing.
        """
        acted = []
        with self.database.write() as session:
            for device in session.scalars(select(Device).order_by(Device.id)):
                desired = session.get(Desired, (device.id, self.model))
                record = session.get(DirectorRecord, device.id)
                state = msgspec.convert(device.reported, State) if device.reported else None
                if record is None or (state and state.assignment >= record.sequence):
                    continue
                act = (behaviour or {}).get(device.id, default)
                if act != "silent":
                    self._act(session, device, desired, record.sequence, act)
                    acted.append(device.id)
        return acted

    def _act(
        self, session: Session, device: Device, desired: Desired | None, sequence: int, act: str
    ) -> None:
        before = msgspec.convert(device.reported, State) if device.reported else None
        serving = list(before.serving) if before else []
        attempts: list[Attempt] = []
        if desired is None:
            serving = []
        else:
            version = figures.version_of(session, self.model, desired.release)
            manifest = self.manifest(version.version, desired.variant)
            step, reason = {
                "fail": (Step.ROLLED_BACK, "trial failed"),
                "fetch": (Step.FETCHING, ""),
                "wait": (Step.TRYING, "waits for the maintenance window"),
            }.get(act, (Step.CONFIRMED, ""))
            attempts = [
                Attempt(desired.attempt, self.model, desired.release, manifest, step, reason)
            ]
            if step is Step.CONFIRMED:
                serving = [
                    Slot(self.model, version.version, desired.release, desired.variant, manifest)
                ]
            if act in ("confirm", "fail"):
                self._result(session, device.id, desired, version.version, manifest, step)
        # While it fetches, a device has not accepted the order as done: it asks for it again.
        accepted = sequence - 1 if act in ("fetch", "wait") else sequence
        device.sequence += 1
        device.last_seen_at = self.clock()
        state = State(
            device.id, 1, device.sequence, self.clock(), "0.1.0", device.board, device.runtimes,
            device.memory_bytes, accepted, serving, [], attempts,
        )  # fmt: skip
        device.reported = msgspec.to_builtins(state)

    def _result(
        self,
        session: Session,
        device: str,
        desired: Desired,
        version: str,
        manifest: str,
        step: Step,
    ) -> None:
        session.add(
            ResultRecord(
                report_id=self._report(session, device, "result"),
                device_id=device,
                attempt=desired.attempt,
                model=self.model,
                version=version,
                release=desired.release,
                manifest=manifest,
                outcome=step,
                reason="" if step is Step.CONFIRMED else "trial failed",
                bytes_fetched=1000,
                seconds=1.0,
                at=self.clock(),
            )
        )

    def running(self) -> dict[str, str | None]:
        """Return device → version that it serves now."""
        with self.database.read() as session:
            found: dict[str, str | None] = {}
            for device in session.scalars(select(Device).order_by(Device.id)):
                state = msgspec.convert(device.reported, State) if device.reported else None
                slots = [slot.version for slot in state.serving] if state else []
                found[device.id] = slots[0] if slots else None
            return found

    # --- what agents report ---------------------------------------------------------------------

    def windows(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Store one window report each of some devices.

        Args:
            reports: device → columns of `WindowRecord`; `version` is needed, others have defaults.
        """
        with self.database.write() as session:
            for device, values in reports.items():
                runtime = next(iter(session.get_one(Device, device).runtimes))
                base: dict[str, Any] = {
                    "model": self.model,
                    "release": 1,
                    "manifest": self.manifest(values["version"], VARIANTS[runtime]),
                    "reference": "0" * 64,
                    "start": self.clock() - 5.0,
                    "end": self.clock(),
                    "rows": 500,
                    "counts": b"",
                    "moments": b"",
                    "errors": 0,
                    "labelled": 0,
                    "correct": 0,
                    "health": {},
                    "received_at": self.clock(),
                }
                lists = ("predictions", "confidences", "psi", "latency_us")
                row = WindowRecord(
                    report_id=self._report(session, device, "window"),
                    device_id=device,
                    **base | {name: [] for name in lists} | dict(values),
                )
                session.add(row)

    def samples(self, device: str, version: str, rows: Any, labels: Sequence[str]) -> None:
        """Store a batch of labelled rows, `(n, n_features)`, of columns `p0`, `p1`, …."""
        with self.database.write() as session:
            session.add(
                SampleRecord(
                    report_id=self._report(session, device, "samples"),
                    device_id=device,
                    model=self.model,
                    version=version,
                    purpose="retraining",
                    columns=[f"p{index}" for index in range(rows.shape[1])],
                    rows=rows.astype("<f4").tobytes(),
                    labels=list(labels),
                    predicted=list(labels),
                    at=self.clock(),
                    received_at=self.clock(),
                )
            )

    def _report(self, session: Session, device: str, kind: str) -> int:
        number = (session.scalar(select(func.max(ReportRecord.number))) or 0) + 1
        report = ReportRecord(
            device_id=device, store="store-1", number=number, kind=kind, payload_bytes=100,
            at=self.clock(), received_at=self.clock(),
        )  # fmt: skip
        session.add(report)
        session.flush()
        return report.id
