"""Each bundle below EDGEFLEET_BUNDLES is right in each runtime release, on each processor.

EDGEFLEET_BUNDLES: folder below which bundles lie. EDGEFLEET_RUNTIME: releases by commas, such as
`onnxruntime==1.18.1,ai-edge-litert==2.3.0`; the newest tried ones by default. EDGEFLEET_CPU: cores
by commas, such as `cortex-a53,cortex-a72`; this machine's own processor by default.
"""

import os
from pathlib import Path

import pytest

from edgefleet_hardware import cases, runtimes, static
from edgefleet_hardware.cases import Case, Limits
from edgefleet_hardware.errors import HardwareError, TargetUnavailableError
from edgefleet_hardware.local import LocalTarget
from edgefleet_hardware.runtimes import NEWEST, Runtime

# As `edgefleet-compat run` allows.
_LIMITS = Limits(time_s=120.0)


def _listed(variable: str) -> list[str]:
    return [text.strip() for text in os.environ.get(variable, "").split(",") if text.strip()]


FOLDER = os.environ.get("EDGEFLEET_BUNDLES")
BUNDLES = sorted(path.parent for path in Path(FOLDER).rglob(cases.MANIFEST_NAME)) if FOLDER else []
RUNTIMES = _listed("EDGEFLEET_RUNTIME") or list(NEWEST.values())
PROCESSORS = _listed("EDGEFLEET_CPU") or [runtimes.own().name]


def _below(bundle: Path) -> str:
    return str(bundle.relative_to(FOLDER or "."))


def _failure(text: str) -> BaseException:
    """Return a failed test that says one line, because where it was raised tells nobody more."""
    return pytest.fail.Exception(text, pytrace=False)


def _read(bundle: Path) -> Case:
    try:
        return cases.read(bundle, _LIMITS)
    except HardwareError as error:
        raise _failure(str(error)) from None


def _release(runtime: str) -> Runtime:
    try:
        return Runtime.parse(runtime)
    except HardwareError as error:
        raise _failure(f"EDGEFLEET_RUNTIME: {error}") from None


def test_bundles_are_given() -> None:
    """A folder without bundles must not pass for a runtime that is right."""
    if FOLDER is None:
        pytest.skip("set EDGEFLEET_BUNDLES to a folder of bundles (edgefleet-convert … --out)")
    if not BUNDLES:
        raise _failure(f"EDGEFLEET_BUNDLES: no bundle ({cases.MANIFEST_NAME}) below {FOLDER}")


@pytest.mark.parametrize("bundle", BUNDLES, ids=_below)
def test_a_release_is_given_that_the_bundle_is_for(bundle: Path) -> None:
    """A bundle that no release is for would only be skipped, which must not pass for right."""
    case = _read(bundle)
    if not any(_release(runtime).format == case.format for runtime in RUNTIMES):
        text = f"{case.name} is of the format {case.format}; EDGEFLEET_RUNTIME has no release for"
        raise _failure(f"{text} it: {', '.join(RUNTIMES)}")


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bundle", BUNDLES, ids=_below)
def test_the_bundle_is_right(bundle: Path, runtime: str, processor: str) -> None:
    """It reproduces its golden vectors; a target that cannot be tried fails the test too."""
    case, release = _read(bundle), _release(runtime)
    if case.format != release.format:
        pytest.skip(f"{case.name} is no model for {release.name}")
    try:
        target = LocalTarget(release, runtimes.processor(processor))
        told = static.teller()(case, target.about)
        (outcome,) = target.run([case])
    except TargetUnavailableError as error:
        raise _failure(f"{release} on {processor} could not be tried: {error}") from None
    except HardwareError as error:
        raise _failure(f"{release} on {processor}: {error}") from None
    if not outcome.is_right:
        check = "fits" if told.fits else f"does not fit: {'; '.join(told.reasons)}"
        said = f"{case.name} on {target.about}: {outcome.kind}: {outcome.detail}"
        raise _failure(f"{said} (static check: {check})")
