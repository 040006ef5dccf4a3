"""The demo's chapters, driven through the hub's API as an operator would drive it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import attacks, fleet, world
from demo.fleet import Camera, DemoError, Hub, wait_for
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.storage import Store
from edgefleet_protocol import manifest

MODEL = "digits"
CAMERAS = 12
# Cameras under the new light, and the one whose sensor freezes; the other three see no change.
SHIFTED = range(8)
STUCK = 8
NO_CONSENT = 3
# Agents look for a replaced file once a second; a report takes a moment to arrive.
SWITCH_S = 2.0
# A training takes half a minute on two idle cores.
JOB_S = 300.0
WINDOW_ROWS = 500
TRAINING = {"image_shape": [8, 8, 1], "filters": [16, 32], "dense": 64, "epochs": 15}
ORDER = {
    "window_rows": WINDOW_ROWS,
    "confirm_rows": 100,
    "confirm_deadline_s": 60,
    "samples": {"purpose": "retraining", "per_window": 60, "strategy": "reservoir"},
}
GATE = {"min_rows": 500, "min_labelled": 400, "silence_s": 60, "decide_within_s": 90}
VARIANTS = ["onnx-fp32", "onnx-int8", "onnx-pruned", "tflite-fp32", "tflite-int8", "tflite-pruned"]

Json = dict[str, Any]


class Story:
    """Runs the chapters; keeps what the report needs.

    Args:
        folder: for everything that the processes keep.
        console: where progress is shown.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        self._data = world.load()
        self.started_at = time.time()
        self.shifted_at = self.settled_at = 0.0
        self.marks: list[tuple[float, str]] = []
        self.rollouts: list[int] = []
        self.refused: list[Json] = []
        self.retrain_job = 0
        self.hub: Hub | None = None
        self.cameras = [_camera(folder, index) for index in range(CAMERAS)]

    # -- chapters --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the hub, hand in the laboratory's data, train version 1 while cameras enrol."""
        with self._step("starting the hub and its broker"):
            self.hub = fleet.start_hub(self._folder)
        lab = self._folder / "lab.csv"
        world.write_csv(lab, self._data.lab)
        with lab.open("rb") as file:
            self._api.post(
                "/v1/datasets", form={"name": "lab", "label": world.LABEL}, files={"file": file}
            )
        job = self._train("lab", TRAINING, VARIANTS)
        with self._step("enrolling 12 cameras while version 1 is trained"):
            self._show_to(self._data.field_first, changed=False)
            fleet.enroll_all(self._hub, self.cameras)
            for camera in self.cameras:
                camera.start()
        self._finish_job("training, compressing and verifying version 1", job, JOB_S)
        self._roll_out("1", "staged", "staged rollout of version 1 to all cameras")

    def watch(self) -> None:
        """Let the cameras work, and let the hub retrain by itself if the fleet drifts."""
        self._api.post(
            "/v1/triggers",
            {
                "model": MODEL,
                "recipe": {
                    "trainer": "keras-cnn",
                    "parameters": TRAINING,
                    "min_samples": 700,
                    "purpose": "retraining",
                    "auto_release": True,
                    "strategy": "canary",
                    "to": "all",
                    "gate": GATE,
                    "order": ORDER,
                    "variants": VARIANTS,
                },
            },
        )
        with self._step("the cameras work: no drift so far"):
            self._windows_since(time.time(), "1", 3)

    def change_the_world(self) -> None:
        """Change the light for eight cameras and freeze one; wait until the hub has seen both."""
        self.shifted_at = time.time()
        self._mark("the world changes")
        self._show_to(self._data.field_first, changed=True)
        # A window that began before the change still holds rows from before it.
        self.settled_at = self.shifted_at + WINDOW_ROWS / fleet.ROWS_PER_S + SWITCH_S
        with self._step("the light changes for 8 cameras, one freezes: what does the hub say?"):
            self._wait("a fleet alarm", lambda: self._incident("drift", "fleet"), 90)
            self._mark("fleet drift")
            self._wait("the stuck camera", lambda: self._incident("device-fault", "device"), 60)
        for incident in self._api.get("/v1/incidents"):
            self._console.print(f"  [yellow]{incident['scope']}[/]: {incident['text']}")

    def retrain(self) -> None:
        """Wait for the drift's retraining and the canary rollout that follows by itself."""
        with self._step("labelled rows come back from cameras that consent"):
            job = self._wait("a retraining", self._retraining, 60)
        self._mark("retraining")
        # From here on every camera sees rows that no training has seen.
        self._show_to(self._data.field_second, changed=True)
        self._finish_job("retraining on the laboratory's and the field's rows", job, JOB_S)
        # An engineer in a hurry: trained on the laboratory's old data alone, judged on it alone.
        hasty = self._train("lab", {**TRAINING, "epochs": 8}, ["onnx-fp32", "tflite-fp32"], seed=3)
        rollout = self._wait("the rollout of version 2", lambda: self._newest_rollout("2"), 30)
        self._follow(rollout, "canary rollout of version 2")
        self._mark("version 2 everywhere")
        with self._step("version 2 works"):
            self._windows_since(time.time(), "2", 2)
        self._finish_job("an engineer trains version 3 on old data, in a hurry", hasty, JOB_S)

    def release_badly(self) -> None:
        """Roll out version 3 and see it go back."""
        self._mark("version 3")
        outcome = self._roll_out("3", "canary", "canary rollout of version 3")
        if outcome != "rolled_back":
            raise DemoError(
                f"the rollout of version 3 is {outcome}; it should have been rolled back"
            )
        self._mark("rolled back")
        left = [camera.name for camera in self.cameras if self._serving(camera.name) == "3"]
        if left:
            raise DemoError(f"version 3 is still on {', '.join(left)}")

    def attack(self) -> None:
        """Tamper with an artifact in the store, and replay an old assignment at the broker."""
        victim = self.cameras[-1]
        broker = attacks.BrokerAttacker(self._hub)
        old = broker.record_assignment(victim)
        with self._step("an attacker alters an artifact in the store"):
            self._tampered(victim)
        with self._step("an attacker replays an old assignment at the broker"):
            broker.replay_assignment(victim.name, old)
            self._wait_refused("replayed assignment", "assignment", victim.name)
        if self._serving(victim.name) != "2":
            raise DemoError(f"{victim.name} does not run version 2 any more")

    def end(self) -> None:
        """Stop everything."""
        fleet.stop(self.hub, self.cameras)

    @property
    def shifted_cameras(self) -> list[Camera]:
        """Cameras under the new light."""
        return [self.cameras[index] for index in SHIFTED]

    # -- pieces ----------------------------------------------------------------------------------

    @property
    def _hub(self) -> Hub:
        assert self.hub is not None  # begin() has started it
        return self.hub

    @property
    def _api(self) -> Client:
        return self._hub.client

    @contextmanager
    def _step(self, text: str) -> Iterator[None]:
        start = time.monotonic()
        with self._console.status(text):
            yield
        self._console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - start:.0f} s)[/]")

    def _mark(self, text: str) -> None:
        self.marks.append((time.time(), text))

    def _show_to(self, rows: world.Rows, *, changed: bool) -> None:
        for index, camera in enumerate(self.cameras):
            seen = world.seen_by(rows, index)
            if changed and index in SHIFTED:
                seen = world.under_new_light(seen, index)
            elif changed and index == STUCK:
                seen = world.stuck(seen)
            world.write_csv(camera.rows, seen)

    def _train(self, dataset: str, parameters: Json, variants: list[str], seed: int = 0) -> int:
        job = self._api.post(
            "/v1/runs",
            {
                "model": MODEL,
                "trainer": "keras-cnn",
                "dataset": dataset,
                "parameters": parameters,
                "variants": variants,
                "seed": seed,
            },
        )
        return int(job["id"])

    def _finish_job(self, text: str, job: int, timeout_s: float) -> None:
        with self._step(text):
            found = self._wait(text, lambda: self._ended(f"/v1/jobs/{job}"), timeout_s)
        if found["state"] != "succeeded":
            raise DemoError(f"job {job} {found['state']}: {found['error']}")

    def _roll_out(self, version: str, strategy: str, text: str) -> str:
        self._api.post(
            f"/v1/models/{MODEL}/versions/{version}/approve", {"reason": "by the demo's operator"}
        )
        rollout = self._api.post(
            "/v1/rollouts",
            {
                "model": MODEL,
                "version": version,
                "to": "all",
                "strategy": strategy,
                "gate": GATE,
                "order": ORDER,
            },
        )
        return self._follow(int(rollout["id"]), text)

    def _follow(self, rollout: int, text: str) -> str:
        self.rollouts.append(rollout)
        with self._step(text):
            found = self._wait(text, lambda: self._ended(f"/v1/rollouts/{rollout}"), 120)
        self._console.print(f"  {found['state']}: {found['history'][-1]['text']}")
        return str(found["state"])

    def _ended(self, path: str) -> Json | None:
        found: Json = self._api.get(path)
        return None if found["state"] in ("queued", "running", "rolling_back") else found

    def _newest_rollout(self, version: str) -> int | None:
        for rollout in self._api.get("/v1/rollouts", model=MODEL):
            if rollout["version"] == version:
                return int(rollout["id"])
        return None

    def _incident(self, kind: str, scope: str) -> Json | None:
        for incident in self._api.get("/v1/incidents"):
            if incident["kind"] == kind and incident["scope"] == scope:
                found: Json = incident
                return found
        return None

    def _retraining(self) -> int | None:
        for job in self._api.get("/v1/jobs", kind="retrain"):
            self.retrain_job = int(job["id"])
            return self.retrain_job
        return None

    def _serving(self, device: str) -> str | None:
        return self._reported(device).get("version")

    def _reported(self, device: str) -> Json:
        for model in self._api.get(f"/v1/devices/{device}")["models"]:
            if model["model"] == MODEL:
                return model["reported"] or {}
        return {}

    def _windows_since(self, since: float, version: str, count: int) -> None:
        def seen() -> bool | None:
            rows = dict.fromkeys((camera.name for camera in self.cameras), 0)
            path = f"/v1/models/{MODEL}/performance"
            for served in self._api.get(path, since=since, by_device=True):
                if served["version"] == version:
                    rows[served["device"]] += served["rows"]
            return min(rows.values()) >= count * WINDOW_ROWS or None

        self._wait(f"{count} windows of every camera", seen, 60)

    def _tampered(self, victim: Camera) -> None:
        held = self._reported(victim.name)
        found = self._api.get(f"/v1/models/{MODEL}/versions/2")
        # A variant that the camera can run and does not hold, so that it has to be fetched.
        variant = next(
            v
            for v in found["variants"]
            if v["state"] == "verified"
            and v["runtime"] == victim.runtime
            and v["name"] != held.get("variant")
        )
        store = Store(self._hub.home / "store")
        path = store.path(
            manifest.decode(store.read(variant["manifest"])).file("model").transfer.digest
        )
        former = attacks.flip_a_byte(path)
        rollout = self._api.post(
            "/v1/rollouts",
            {
                "model": MODEL,
                "version": "2",
                "to": f"device:{victim.name}",
                "strategy": "direct",
                "variant": variant["name"],
                "order": ORDER,
            },
        )
        self._wait_refused("tampered artifact", "artifact block", victim.name)
        self._wait("the end", lambda: self._ended(f"/v1/rollouts/{rollout['id']}"), 60)
        path.write_bytes(former)

    def _wait_refused(self, what: str, kind: str, device: str) -> None:
        def refusal() -> Json | None:
            for row in self._api.get("/v1/refusals", device=device):
                if row["what"] == kind:
                    found: Json = row
                    return found
            return None

        found = self._wait(f"the refusal of the {what}", refusal, 60)
        self.refused.append(
            {"what": what, "by": device, "reason": f"{found['reason']}: {found['text']}"}
        )
        self._console.print(f"  refused by {device}: {found['text']}")

    def _wait(self, what: str, ask: Callable[[], Any], timeout_s: float) -> Any:
        def checked() -> Any:
            self._hub.process.check()
            for camera in self.cameras:
                if camera.process:
                    camera.process.check()
            return ask()

        return wait_for(what, checked, timeout_s=timeout_s)


def _camera(folder: Path, index: int) -> Camera:
    board, runtime = ("rpi4", "onnxruntime") if index % 2 else ("rpi-zero2w", "litert")
    name = f"cam-{index + 1:02d}"
    # One owner does not consent: no row of this camera ever leaves it.
    return Camera(name, board, runtime, folder / "cameras", consent=index != NO_CONSENT)
