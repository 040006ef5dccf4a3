"""Bringing a release that is on disk into this process, ready to serve.

The files are those that `verifying` has checked; at a start of the agent they are hashed again,
because a device may have lost power, or its card may be failing.
"""

from collections.abc import Callable

from edgefleet_agent import runtimes, verification
from edgefleet_agent.config import Config
from edgefleet_agent.errors import ModelError, StoreError
from edgefleet_agent.serving import Served
from edgefleet_agent.sketching import ClosedWindow, Recorder
from edgefleet_agent.slots import Slots
from edgefleet_agent.update import Installed, Order
from edgefleet_protocol.manifest import Manifest
from edgefleet_protocol.profiles import DeviceProfile
from edgefleet_protocol.trust import SamplePolicy


class Loader:
    """Loads releases.

    Args:
        config: of the agent.
        slots: that hold the files.
        device: what this device is.
        clock: Unix seconds.
        on_window: queues a closed window.
    """

    def __init__(
        self,
        config: Config,
        slots: Slots,
        device: DeviceProfile,
        clock: Callable[[], float],
        on_window: Callable[[ClosedWindow], None],
    ) -> None:
        self._config = config
        self._slots = slots
        self._device = device
        self._clock = clock
        self._on_window = on_window

    def load(self, installed: Installed, *, whole: bool = False) -> tuple[Served, Manifest]:
        """Open a release's model and give it a recorder.

        Args:
            installed: whose files are on disk.
            whole: hash every file first; a damaged one is dropped.

        Returns:
            What can serve, and its manifest.

        Raises:
            StoreError: if a file is missing or damaged.
            ModelError: if the model cannot be opened here.
        """
        slot, order = installed.slot, installed.order
        bundle = self._slots.manifest(slot.manifest)
        if whole:
            bad = self._slots.drop_damaged(bundle)
            bad += [f"{file.role} file {file.digest}" for file in self._slots.absent(bundle)]
            if bad:
                raise StoreError(f"damaged on disk: {', '.join(bad)}")
        reference = bundle.file("reference")
        profile = verification.read_reference(bundle, self._slots.read(reference))
        if bundle.needs.runtime not in self._device.runtimes:
            raise ModelError(f"runtime {bundle.needs.runtime} is not installed or not allowed")
        session = runtimes.load_bundle(bundle, self._slots.path(bundle.file("model").digest))
        signature = bundle.signature
        recorder = Recorder(
            slot,
            profile=profile,
            reference=reference.digest,
            classes=signature.classes if signature.task == "classification" else [],
            window_rows=order.window_rows,
            recent_bytes=self._config.budgets.recent_rows_bytes,
            clock=self._clock,
            on_window=self._on_window,
            policy=self.policy(order),
        )
        return Served(slot, signature, profile, session, recorder), bundle

    def policy(self, order: Order) -> SamplePolicy | None:
        """Return which rows may leave the device: what is asked for, where its owner consents."""
        return order.samples if self._config.samples.consent else None
