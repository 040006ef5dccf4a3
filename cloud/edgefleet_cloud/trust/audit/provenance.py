"""What a variant was made of, as an in-toto Statement v1 with a SLSA Provenance v1 predicate.

Values in, a statement out; signing and the database are in `attesting`. The statement says of one
variant of one version:

| part | what |
|---|---|
| `subject` | the model file as used, and the manifest, by digest |
| `buildDefinition.externalParameters` | what was asked for: trainer, parameters, seed |
| `buildDefinition.internalParameters` | where it ran: package versions, Python, machine |
| `buildDefinition.resolvedDependencies` | datasets, code, fitted model, the champion to beat |
| `runDetails` | the hub that vouches, the run, when it began and ended, the metrics |

Specifications: in-toto Attestation Framework v1, SLSA v1.0 (both: field names and meanings). The
`buildType`s are `edgefleet:train:1`, `edgefleet:import:1` and `edgefleet:search:1`.
"""

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from edgefleet_cloud.values import Json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Material:
    """Something that had a part.

    Attributes:
        name: `dataset:NAME`, `code`, `fitted-model`, `champion:VERSION/VARIANT`.
        digest: SHA-256.
        uri: where it can be had, or what it is called elsewhere.
        annotations: further facts, as the rows of a dataset.
    """

    name: str
    digest: str
    uri: str = ""
    annotations: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Making:
    """Everything that is known of how a variant was made.

    Attributes:
        subjects: name → digest of what came out.
        build_type: `train`, `import` or `search`.
        parameters: as asked for.
        environment: package → version, `python`, `machine`.
        builder: key id of the hub's builder key.
        builder_version: of the hub's software.
        invocation: of the run, unique within the hub.
        started_at, finished_at: Unix seconds; None where that is not known.
        metrics: on held-out rows.
    """

    subjects: Mapping[str, str]
    build_type: str
    parameters: Json
    environment: Json
    materials: Sequence[Material]
    builder: str
    builder_version: str
    invocation: str
    started_at: float | None
    finished_at: float | None
    metrics: Json


def statement(making: Making) -> bytes:
    """Return the statement as JSON: equal makings give equal bytes."""
    metadata = {"invocationId": making.invocation} | {
        name: _moment(at)
        for name, at in (("startedOn", making.started_at), ("finishedOn", making.finished_at))
        if at is not None
    }
    metrics = msgspec.json.encode(making.metrics, order="sorted")
    content = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in making.subjects.items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"edgefleet:{making.build_type}:1",
                "externalParameters": making.parameters,
                "internalParameters": {"environment": making.environment},
                "resolvedDependencies": [_descriptor(item) for item in making.materials],
            },
            "runDetails": {
                "builder": {
                    "id": f"edgefleet:hub:{making.builder}",
                    "version": {"edgefleet-cloud": making.builder_version},
                },
                "metadata": metadata,
                "byproducts": [
                    {
                        "name": "metrics",
                        "mediaType": "application/json",
                        "content": base64.b64encode(metrics).decode(),
                    }
                ],
            },
        },
    }
    return msgspec.json.encode(content)


def _descriptor(item: Material) -> Json:
    descriptor: Json = {"name": item.name, "digest": {"sha256": item.digest}}
    if item.uri:
        descriptor["uri"] = item.uri
    if item.annotations:
        descriptor["annotations"] = item.annotations
    return descriptor


def _moment(at: float) -> str:
    """Return a time as RFC 3339 in UTC, whole seconds."""
    moment = datetime.datetime.fromtimestamp(int(at), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
