"""Bundles that were made elsewhere (`edgefleet-convert`), as a version of this hub's registry.

What their maker measured is kept, but nothing is believed: every digest is checked, and each
variant must reproduce its golden vectors on this hub's own runtime, in a child process, or is
refused. The manifest is written anew with the model's name, version and run here; the files are
kept as they are.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.registry.registration import Registration, VariantEntry
from edgefleet_cloud.storage import Store
from edgefleet_converters import bundles, child
from edgefleet_converters.bundles import Bundle
from edgefleet_converters.errors import ConversionError
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import trial
from edgefleet_protocol import manifest
from edgefleet_protocol.manifest import Lineage


def take_in(
    store: Store, folders: Sequence[Path], *, model: str, version: str, run_id: int
) -> Registration:
    """Verify bundles, put their files into the store and describe them for the registry.

    Args:
        store: of the hub.
        folders: of the bundles; variants of one version of one model.
        model: its name here.
        version: its version here.
        run_id: the run that takes it in.

    Raises:
        BadInputError: one is no whole bundle.
        InvalidError: they are not variants of one version.
    """
    loaded = [bundles.load(folder) for folder in folders]
    first = loaded[0].manifest
    _check_together([bundle.manifest for bundle in loaded])
    lineage = msgspec.structs.replace(first.lineage, run=str(run_id))
    entries = [_entry(store, bundle, model, version, lineage) for bundle in loaded]
    reference = store.put(loaded[0].unpack("reference"))
    return Registration(model, version, first.signature.task, reference, {}, lineage, entries)


def _check_together(manifests: Sequence[manifest.Manifest]) -> None:
    kinds = {
        (item.model, item.model_version, item.signature.task, item.file("reference").digest)
        for item in manifests
    }
    if len(kinds) != 1:
        listed = ", ".join(sorted(f"{item.model} {item.model_version}" for item in manifests))
        raise InvalidError(
            f"the bundles ({listed}) are not variants of one version with one reference profile;"
            " hand in what one conversion made"
        )
    names = [item.variant for item in manifests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidError(f"the bundles hold the variant {', '.join(twice)} twice")


def _entry(
    store: Store, bundle: Bundle, model: str, version: str, lineage: Lineage
) -> VariantEntry:
    read = bundle.manifest
    data = bundle.unpack("model")
    needs, measured = (msgspec.to_builtins(part) for part in (read.needs, read.measured))
    faults = _faults(bundle, data)
    if faults:
        return VariantEntry(
            read.variant, read.needs.runtime, "refused", "; ".join(faults), measured, needs, None,
            len(data), 0, None,
        )  # fmt: skip
    made = msgspec.structs.replace(read, model=model, model_version=version, lineage=lineage)
    for blob in bundle.blobs.values():
        store.put(blob)
    return VariantEntry(
        read.variant, read.needs.runtime, "verified", None, measured, needs, store.put(data),
        len(data), made.transfer_bytes, store.put(manifest.encode(made)),
    )  # fmt: skip


def _faults(bundle: Bundle, data: bytes) -> list[str]:
    """Return why a bundle does not give here what it gave when it was made."""
    read = bundle.manifest
    runtime = read.needs.runtime
    handed = Model("onnx" if runtime == "onnxruntime" else "tflite", data, read.signature)
    try:
        return child.run(
            f"running {read.variant}",
            trial.golden_faults,
            runtime,
            handed,
            bundle.unpack("golden"),
            returns=list[str],
        )
    except ConversionError as error:
        return [str(error)]
