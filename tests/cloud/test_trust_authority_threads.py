"""The hub's own certificates, asked for by its threads at the same time."""

import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from edgefleet_cloud.trust.identity.authority import Authority


def test_threads_that_ask_for_one_pair_at_once_leave_a_certificate_beside_its_own_key(
    tmp_path: Path,
) -> None:
    authority = Authority.open(tmp_path / "authority", clock=lambda: 1_800_000_000.0)
    together = Barrier(4)

    def ask(folder: Path) -> None:
        together.wait()
        pair = authority.issue_client("hub", folder)
        ssl.create_default_context().load_cert_chain(pair.certificate, pair.key)

    with ThreadPoolExecutor(4) as threads:
        for turn in range(20):
            list(threads.map(ask, [tmp_path / str(turn)] * 4))
