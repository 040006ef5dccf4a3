"""The agent as an application uses it.

    from edgefleet_agent.agent import Agent
    from edgefleet_agent.config import load

    agent = Agent(load())
    agent.start()
    camera = agent.model("digits")
    camera.wait()
    answer = camera.predict(pixels)
    camera.feedback(answer.id, "7")     # when the truth is known
    agent.stop()

`predict` answers from memory at any time: without a hub, without a network, during an update.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edgefleet_agent import files, runtimes
from edgefleet_agent.config import Config, detect_board
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.engine import Engine
from edgefleet_agent.inference.serving import Model
from edgefleet_agent.link import Link, MqttLink
from edgefleet_agent.operating import health
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.trusting import identity, refresh, renewal
from edgefleet_agent.trusting.timekeeping import Timekeeper, slept_s
from edgefleet_agent.trusting.trust import Trust
from edgefleet_protocol.profiles import DeviceProfile

if TYPE_CHECKING:
    from edgefleet_agent.pipeline import Pipeline
    from edgefleet_agent.server.listener import InferenceServer
    from edgefleet_agent.sources import ReplaySource

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 15.0
# For each release that is loaded at the start; what takes longer serves when it is there.
OPEN_WAIT_S = 30.0


def device_profile(config: Config) -> DeviceProfile:
    """Return what this device is, by its configuration and by looking at the machine."""
    return DeviceProfile(
        config.board or detect_board(),
        runtimes.available(config.runtimes),
        health.total_memory_bytes(),
    )


def build_engine(
    config: Config,
    known: identity.Identity,
    link: Link,
    *,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
    surroundings: Mapping[str, Any] | None = None,
    alive: Callable[[], None] = lambda: None,
    run_client: refresh.Refresh = refresh.in_child,
    check_time: refresh.CheckTime = refresh.time_in_child,
    ask_keyholder: renewal.Ask = renewal.in_child,
) -> Engine:
    """Open everything that an engine owns on disk and put it together.

    Args:
        config: of the agent, whose store the caller has locked.
        known: identity of the device.
        link: to the hub.
        clock: Unix seconds.
        monotonic: seconds that never go back.
        surroundings: fields of `surroundings.Surroundings` to replace, for tests.
        alive: called in each turn of the engine, for a watchdog.
        run_client: runs the TUF client; in this process for tests that need no child.
        check_time: verifies an attested time; likewise.
        ask_keyholder: runs the program that holds the device's keys; likewise.

    Raises:
        StoreError: if the store cannot be written or read.
    """
    profile = device_profile(config)
    log.info(
        "device %s, board %s, runtimes %s",
        known.hub.device,
        profile.board,
        ", ".join(f"{name} {version}" for name, version in profile.runtimes.items()) or "none",
    )
    slots = Slots(config.folder, config.storage)
    slots.prepare()
    timekeeper = Timekeeper(
        config.folder / "trust",
        known.hub.device,
        known.director_root,
        clock=clock,
        monotonic=monotonic,
        nonce=os.urandom,
        slept=slept_s,
        check=check_time,
    )
    trust = Trust(
        config.folder / "trust",
        device=known.hub.device,
        board=profile.board,
        image_root=known.image_root,
        director_root=known.director_root,
        run_client=run_client,
        instant=timekeeper.instant,
    )
    return Engine(
        config,
        known=known,
        profile=profile,
        link=link,
        slots=slots,
        outbox=Outbox(config.folder, known.hub.device, config.budgets.outbox_max_bytes),
        trust=trust,
        timekeeper=timekeeper,
        clock=clock,
        monotonic=monotonic,
        surroundings=surroundings,
        alive=alive,
        ask_keyholder=ask_keyholder,
    )


class Agent:
    """One agent on one store. `start` once, `stop` once."""

    def __init__(
        self,
        config: Config,
        *,
        link: Link | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the store; nothing runs yet.

        Args:
            config: from `config.load`.
            link: to the hub; None for MQTT.
            clock: Unix seconds.
            monotonic: seconds that never go back.
            alive: called in each turn of the engine, for a watchdog.

        Raises:
            ConfigError: if the local broker's password cannot be read.
            EnrolmentError: if the device is not enrolled.
            ServerError: if a server is configured and not installed.
            StoreError: if the store is in use, or cannot be written or read.
        """
        self._held = ExitStack()
        self._threads: list[threading.Thread] = []
        self._source: ReplaySource | None = None
        self._server: InferenceServer | None = None
        self._pipeline: Pipeline | None = None
        try:
            self._held.enter_context(files.locked(config.folder))
            known = identity.load(config.folder)
            self._link = link or MqttLink(known, dates=lambda: self._engine.timekeeper.dates())
            self._engine = build_engine(
                config, known, self._link, clock=clock, monotonic=monotonic, alive=alive
            )
            self._open_doors(config, clock)
        except BaseException:
            self._held.close()
            raise

    def start(self) -> None:
        """Serve what is on disk, then connect.

        Raises:
            ServerError: if the local server cannot listen where it is configured to; nothing has
                been started then, and the store is let go of.
        """
        if self._server:
            try:
                self._server.start()
            except BaseException:
                self._held.close()
                raise
        self._engine.open(OPEN_WAIT_S)
        self._start_thread("engine", self._engine.run)
        self._link.start(self._engine.deliver)
        if self._pipeline:
            self._pipeline.start()
        if self._source:
            self._start_thread("source", self._source.run)

    def stop(self) -> None:
        """Close the open windows, put everything on disk and let go of the store."""
        if self._source:
            self._source.stop()
        if self._pipeline:
            self._pipeline.stop()
        if self._server:
            self._server.stop()
        self._engine.stop()
        for thread in self._threads:
            thread.join(timeout=STOP_TIMEOUT_S)
        self._link.stop()
        self._held.close()

    def model(self, name: str) -> Model:
        """Return a model by name, whether or not one serves yet (see `Model.wait`)."""
        return self._engine.model(name)

    def models(self) -> list[str]:
        """Return the names of the models that have a serving release."""
        return self._engine.models()

    def link_alive(self) -> bool:
        """Tell whether the link still tries to be connected."""
        return self._link.is_alive()

    @property
    def server(self) -> "InferenceServer | None":
        """The local inference server, where one is configured."""
        return self._server

    @property
    def pipeline(self) -> "Pipeline | None":
        """The connection to the local broker, where one is configured."""
        return self._pipeline

    def _open_doors(self, config: Config, clock: Callable[[], float]) -> None:
        """Make the ways in for rows; each is imported only where it is wanted."""
        if config.source:
            from edgefleet_agent.sources import ReplaySource

            self._source = ReplaySource(config.source, self.model(config.source.model))
        if config.server.listen:
            from edgefleet_agent.server.listener import InferenceServer

            self._server = InferenceServer(config.server, self)
        if config.broker.topics:
            from edgefleet_agent.pipeline import Pipeline

            self._pipeline = Pipeline(config.broker, self.model, clock=clock)

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
