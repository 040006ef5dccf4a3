"""Bringing a release that is on disk into this process, ready to serve.

The files are those that `verifying` has checked; at a start of the agent they are hashed again,
because a device may have lost power, or its card may be failing.
"""

from collections.abc import Callable

from edgefleet_agent import runtimes
from edgefleet_agent.config import Config
from edgefleet_agent.downloading.slots import Heed, Slots, go_on
from edgefleet_agent.errors import ModelError, StoreError
from edgefleet_agent.inference.serving import Served
from edgefleet_agent.inference.sketching import ClosedWindow, Recorder
from edgefleet_agent.runtimes import execution
from edgefleet_agent.updating import verification
from edgefleet_agent.updating.journal import Installed, Order
from edgefleet_protocol import profiles
from edgefleet_protocol.manifest import Manifest, Signature
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
        # Threads and execution providers of every session here, also of the trial's.
        self.how = execution.choose(
            config.execution.threads,
            config.execution.providers,
            device.board,
            str(slots.engines),
        )

    def load(
        self, installed: Installed, heed: Heed = go_on, *, whole: bool = False
    ) -> tuple[Served, Manifest]:
        """Open a release's model and give it a recorder.

        Args:
            installed: whose files are on disk.
            heed: raises what is to end the work.
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
            bad = self._slots.drop_damaged(bundle, heed)
            bad += [f"{file.role} file {file.digest}" for file in self._slots.absent(bundle)]
            if bad:
                raise StoreError(f"damaged on disk: {', '.join(bad)}")
        reference = bundle.file("reference")
        profile = verification.read_reference(bundle, self._slots.read(reference))
        if not profiles.serves(bundle.needs.runtime, self._device.runtimes):
            raise ModelError(f"runtime {bundle.needs.runtime} is not installed or not allowed")
        model = self._slots.path(bundle.file("model").digest)
        session = runtimes.load_bundle(bundle, model, self.how)
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
            policy=self.policy(order, signature),
        )
        return Served(slot, signature, profile, session, recorder), bundle

    def policy(self, order: Order, signature: Signature) -> SamplePolicy | None:
        """Return which rows may leave the device: what is asked for, where its owner consents.

        Only rows of named columns are samples; of a model that takes more, none leaves.
        """
        allowed = self._config.samples.consent and signature.is_tabular
        return order.samples if allowed else None
