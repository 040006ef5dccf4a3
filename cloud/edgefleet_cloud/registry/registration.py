"""What a job hands to the registry: JSON out of the job's process, values in the hub.

The worker puts all files into the content-addressed store first (`store_result`); the hub then
registers digests only. Storing twice changes nothing.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from edgefleet_cloud.storage import Store
from edgefleet_cloud.values import Json
from edgefleet_converters.pipeline import Compiled, ConversionResult, write_bundle
from edgefleet_protocol.manifest import Lineage, Runtime, Task


class VariantEntry(Struct, frozen=True):
    """One variant, verified or refused; see `database.models.Variant`."""

    name: str
    runtime: Runtime
    state: Literal["verified", "refused"]
    reason: str | None
    measured: Json
    needs: Json
    model_digest: str | None
    model_bytes: int
    transfer_bytes: int
    manifest: str | None
    recipe: str = ""


class Registration(Struct, frozen=True):
    """A converted model, its files stored.

    Attributes:
        reference: digest of the reference profile.
        metrics: of the original model on held-out rows.
    """

    model: str
    version: str
    task: Task
    reference: str
    metrics: dict[str, float]
    lineage: Lineage
    variants: list[VariantEntry]


def store_result(
    store: Store, result: ConversionResult, *, model: str, version: str, lineage: Lineage
) -> Registration:
    """Put every file of a conversion into the store and describe it for the registry.

    Stored are the reference profile, and of each verified variant the manifest, the blobs that
    travel, and the model file as used.
    """
    reference = store.put(result.reference)
    entries = [
        _store_variant(store, item, result.reference, model, version, lineage)
        for item in result.compiled
    ]
    return Registration(model, version, result.task, reference, result.metrics, lineage, entries)


def _store_variant(
    store: Store, item: Compiled, reference: bytes, model: str, version: str, lineage: Lineage
) -> VariantEntry:
    measured = {} if item.measured is None else msgspec.to_builtins(item.measured)
    needs = {} if item.needs is None else msgspec.to_builtins(item.needs)
    if item.state != "verified":
        return VariantEntry(
            item.name, item.runtime, "refused", item.reason, measured, needs, None,
            len(item.model), 0, None, item.recipe,
        )  # fmt: skip
    bundle = write_bundle(item, reference, model=model, version=version, lineage=lineage)
    for blob in bundle.blobs.values():
        store.put(blob)
    return VariantEntry(
        item.name, item.runtime, "verified", None, measured, needs, store.put(item.model),
        len(item.model), bundle.manifest.transfer_bytes, store.put(bundle.manifest_bytes),
        item.recipe,
    )  # fmt: skip
