"""Each bundle below EDGEFLEET_BUNDLES is right in each runtime release, on each processor.

EDGEFLEET_BUNDLES: folder below which bundles lie. EDGEFLEET_RUNTIME: releases by commas, such as
`onnxruntime==1.18.1,ai-edge-litert==2.3.0`; the newest tried ones by default. EDGEFLEET_CPU: cores
by commas, such as `cortex-a53,cortex-a72`; this machine's own processor by default.
"""

import os
from pathlib import Path

import pytest

from edgefleet_hardware import cases, runtimes, static
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.local import LocalTarget
from edgefleet_hardware.runtimes import NEWEST, Runtime

FOLDER = os.environ.get("EDGEFLEET_BUNDLES")
BUNDLES = sorted(path.parent for path in Path(FOLDER).rglob(cases.MANIFEST_NAME)) if FOLDER else []
RUNTIMES = os.environ.get("EDGEFLEET_RUNTIME", ",".join(NEWEST.values())).split(",")
PROCESSORS = os.environ.get("EDGEFLEET_CPU", runtimes.own().name).split(",")


def test_bundles_are_given() -> None:
    """A folder without bundles must not pass for a runtime that is right."""
    if FOLDER is None:
        pytest.skip("set EDGEFLEET_BUNDLES to a folder of bundles (edgefleet-convert … --out)")
    assert BUNDLES, f"EDGEFLEET_BUNDLES: no bundle ({cases.MANIFEST_NAME}) below {FOLDER}"


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bundle", BUNDLES, ids=str)
def test_the_bundle_is_right(bundle: Path, runtime: str, processor: str) -> None:
    """It reproduces its golden vectors; a target that cannot be tried fails the test too."""
    case, release = cases.read(bundle), Runtime.parse(runtime)
    if case.format != release.format:
        pytest.skip(f"{case.name} is no model for {release.name}")
    target = LocalTarget(release, runtimes.processor(processor))
    told = static.teller()(case, target.about)
    try:
        (outcome,) = target.run([case])
    except TargetUnavailableError as error:
        pytest.fail(f"{target.about} could not be tried: {error}")
    check = "fits" if told.fits else f"does not fit: {'; '.join(told.reasons)}"
    assert outcome.is_right, f"{outcome.kind}: {outcome.detail} (static check: {check})"
