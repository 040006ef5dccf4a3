"""What a manifest and its files must say before a bundle may be tried. Decisions only.

Everything here is signed already, so a fault means that the bundle was made wrongly, or that it is
not meant for this device: it is refused for good.
"""

from edgefleet_agent.updating.journal import Assigned
from edgefleet_protocol import golden, profiles, sketch
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Manifest
from edgefleet_protocol.profiles import DeviceProfile
from edgefleet_protocol.sketch import ReferenceProfile


def check_manifest(bundle: Manifest, target: Assigned, device: DeviceProfile) -> None:
    """Refuse a manifest that is not what was assigned, or that this device cannot run.

    Raises:
        RefusedError: `mix-and-match` or `incompatible`.
    """
    slot = target.slot
    said = (bundle.model, bundle.model_version, bundle.variant, bundle.needs.runtime)
    wanted = (slot.model, slot.version, slot.variant, target.runtime)
    if said != wanted:
        raise RefusedError(
            "mix-and-match", f"the manifest is of {said}; the signed target names {wanted}"
        )
    misfits = profiles.misfits(bundle.needs, device)
    if misfits:
        raise RefusedError("incompatible", "; ".join(misfits))
    outputs = {tensor.name for tensor in bundle.signature.outputs}
    if bundle.signature.score_output not in outputs:
        raise RefusedError(
            "malformed",
            f"score output {bundle.signature.score_output!r} is none of {sorted(outputs)}",
        )


def read_reference(bundle: Manifest, data: bytes) -> ReferenceProfile:
    """Read the reference profile and check that it counts the model's own features.

    Raises:
        MalformedError: if it does not.
    """
    profile = sketch.decode_profile(data)
    features = [feature.name for feature in profile.features]
    if features != bundle.signature.features:
        raise MalformedError(
            f"the reference profile counts {features[:5]}…; of the model's"
            f" rows {bundle.signature.features[:5]}… are counted"
        )
    return profile


def read_golden(bundle: Manifest, data: bytes) -> GoldenVectors:
    """Read the golden vectors and check that they are for the model's own inputs.

    Raises:
        MalformedError: if they are not.
    """
    vectors = golden.decode(data)
    golden.inputs_of(bundle.signature, vectors)
    return vectors
