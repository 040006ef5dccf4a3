"""What each step of an attempt does, beside the engine's thread. No state, no decision.

Every function may be called again for the same attempt: after a restart, a step is done anew.
"""

import functools
import logging
from collections.abc import Callable

from edgefleet_agent.config import Config
from edgefleet_agent.downloading.fetching import Fetch
from edgefleet_agent.downloading.slots import Heed, Slots
from edgefleet_agent.errors import CancelledError, StoreError
from edgefleet_agent.updating import trial, verification
from edgefleet_agent.updating.journal import Assigned, Installed
from edgefleet_agent.updating.loading import Loader
from edgefleet_agent.updating.update import Event
from edgefleet_agent.updating.work import Done, Token, Work
from edgefleet_protocol.messages import Tried

log = logging.getLogger(__name__)

TryCandidate = Callable[[trial.Request, Callable[[], bool]], trial.Verdict]


class Steps:
    """The work for one store.

    Args:
        config: of the agent.
        slots: that hold the files.
        loader: of releases.
        try_candidate: `trial.run`.
    """

    def __init__(
        self, config: Config, slots: Slots, loader: Loader, try_candidate: TryCandidate
    ) -> None:
        self._config = config
        self._slots = slots
        self._loader = loader
        self._try_candidate = try_candidate

    def open(self, fetch: Fetch) -> Work:
        """Return the work that looks at what is on disk of a download."""
        return lambda token, heed: Done(token, opened=fetch.open(heed))

    def verify(self, target: Assigned) -> Work:
        """Return the work that unpacks and checks every file."""
        return functools.partial(self._verify, target)

    def try_out(self, target: Assigned) -> Work:
        """Return the work that runs the trial."""
        return functools.partial(self._try, target)

    def activate(self, target: Assigned) -> Work:
        """Return the work that loads a candidate into this process and asks it the golden rows."""
        return functools.partial(self._activate, target)

    def restore(self, installed: Installed) -> Work:
        """Return the work that loads a confirmed release, its files hashed again."""
        return lambda token, heed: Done(
            token, served=self._loader.load(installed, heed, whole=True)[0]
        )

    def _verify(self, target: Assigned, token: Token, heed: Heed) -> Done:
        try:
            bundle = self._slots.manifest(target.slot.manifest)
        except StoreError as error:
            return Done(token, Event.INCOMPLETE, str(error))
        bad = self._slots.drop_damaged(bundle, heed)
        for file in self._slots.needed(bundle):
            if self._slots.has(file.digest):
                self._slots.drop_part(file)  # as a process leaves it that died after installing
            elif not self._slots.has_part(file):
                bad.append(f"{file.role} file {file.digest}")
            elif not bad:
                try:
                    self._slots.install(file, heed)
                except StoreError as error:
                    bad.append(str(error))
        if bad:
            return Done(token, Event.INCOMPLETE, f"damaged on disk: {', '.join(bad)}")
        verification.read_reference(bundle, self._slots.read(bundle.file("reference")))
        verification.read_golden(bundle, self._slots.read(bundle.file("golden")))
        return Done(token, Event.VERIFIED)

    def _try(self, target: Assigned, token: Token, heed: Heed) -> Done:
        bundle = self._slots.manifest(target.slot.manifest)
        budgets = self._config.budgets
        request = trial.Request(
            str(self._slots.path(target.slot.manifest)),
            str(self._slots.path(bundle.file("model").digest)),
            str(self._slots.path(bundle.file("golden").digest)),
            budgets.trial_timeout_s,
            budgets.trial_memory_bytes,
            self._loader.how,
        )
        verdict = self._try_candidate(request, lambda: _is_cancelled(heed))
        tried = None
        if verdict.latency_us:  # else it was refused before anything was measured
            tried = Tried(verdict.latency_us, verdict.memory_bytes, verdict.provider)
        if verdict.faults:
            return Done(token, Event.REFUSED, "; ".join(verdict.faults), tried=tried)
        log.info(
            "trial of %s release %d passed: %.0f us a row on %s, %d bytes",
            token.key,
            target.slot.release,
            verdict.latency_us,
            verdict.provider,
            verdict.memory_bytes,
        )
        return Done(token, Event.PASSED, tried=tried)

    def _activate(self, target: Assigned, token: Token, heed: Heed) -> Done:
        served, bundle = self._loader.load(Installed(target.slot, target.order), heed)
        vectors = verification.read_golden(bundle, self._slots.read(bundle.file("golden")))
        served.check(vectors)
        return Done(token, served=served, max_latency_us=bundle.needs.max_latency_us)


def _is_cancelled(heed: Heed) -> bool:
    try:
        heed()
    except CancelledError:
        return True
    return False
