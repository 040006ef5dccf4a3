"""What the engine's parts need of the agent around them; tests put their own in."""

import random
from collections.abc import Callable

from msgspec import Struct

from edgefleet_agent.downloading.allowance import LinkClass, link_class
from edgefleet_agent.inference.sketching import ClosedWindow
from edgefleet_agent.updating import trial
from edgefleet_agent.updating.work import Done
from edgefleet_protocol.messages import Refusal, Result, Slot
from edgefleet_protocol.profiles import DeviceProfile


class Surroundings(Struct, frozen=True):
    """The ways out of the engine's parts.

    Attributes:
        device: what this device is.
        clock: Unix seconds.
        monotonic: seconds that never go back.
        report: puts a result or a refusal into the outbox.
        deliver: queues a `Done` for the engine's thread.
        on_window: queues a closed window.
        on_proven: queues the news that the candidate of a lane has served enough rows.
        start: runs a piece of work beside the engine's thread.
        try_candidate: `trial.run`.
        link_class: of the network, `allowance.link_class`.
        chance: a random number in [0, 1).
    """

    device: DeviceProfile
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    report: Callable[[Result | Refusal], None]
    deliver: Callable[[Done], None]
    on_window: Callable[[ClosedWindow], None]
    on_proven: Callable[[str, Slot], None]
    start: Callable[[Callable[[], None]], None]
    try_candidate: Callable[[trial.Request, Callable[[], bool]], trial.Verdict] = trial.run
    link_class: Callable[[], LinkClass] = link_class
    chance: Callable[[], float] = random.random
