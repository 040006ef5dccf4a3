"""Print the AsyncAPI description of the device protocol, made from the message types.

The bodies are msgpack (one encoding byte before them, see docs/protocol.md); their schemas are the
JSON Schemas of the same structs, with bytes as base64 text.
"""

import json
from typing import Any

import msgspec

from edgefleet_protocol import __version__, messages

# channel → (who publishes, message types, what it is for)
CHANNELS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "ef/1/d/{device}/up/state": (
        "device",
        (messages.State,),
        "What the device runs now. A full snapshot; the newest replaces all others.",
    ),
    "ef/1/d/{device}/up/report": (
        "device",
        (messages.Report,),
        "One entry of the device's outbox, repeated until it is acknowledged.",
    ),
    "ef/1/d/{device}/up/request": (
        "device",
        (messages.BlockRequest, messages.SyncRequest, messages.TimeRequest),
        "Blocks of an artifact, all retained documents, or the attested time, wanted.",
    ),
    "ef/1/d/{device}/down/assignment": (
        "hub",
        (messages.Assignment,),
        "Retained. The director repository of the device: its full assignment, signed.",
    ),
    "ef/1/d/{device}/down/blocks": (
        "hub",
        (messages.Block, messages.BlocksUnavailable),
        "Blocks that the device asked for, or why there are none.",
    ),
    "ef/1/d/{device}/down/ack": (
        "hub",
        (messages.Ack,),
        "Reports that are committed in the hub's database.",
    ),
    "ef/1/d/{device}/down/time": (
        "hub",
        (messages.TimeAttestation,),
        "The time that the device asked for, signed by the director's timestamp key.",
    ),
    "ef/1/fleet/blob/{digest}": (
        "hub",
        (messages.Block,),
        "Blocks broadcast to devices that fetch the same artifact at once.",
    ),
}


def document() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document."""
    types = [kind for _, kinds, _ in CHANNELS.values() for kind in kinds]
    references, schemas = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    payloads = dict(zip((kind.__name__ for kind in types), references, strict=True))
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for address, (publisher, kinds, text) in CHANNELS.items():
        name = "-".join(part for part in address.split("/")[2:] if not part.startswith("{"))
        channels[name] = {
            "address": address,
            "description": text,
            "parameters": {
                part[1:-1]: {"description": f"id of the {part[1:-1]}"}
                for part in address.split("/")
                if part.startswith("{")
            },
            "messages": {
                kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds
            },
        }
        operations[f"{publisher}-sends-{name}"] = {
            "action": "send" if publisher == "hub" else "receive",
            "channel": {"$ref": f"#/channels/{name}"},
        }
    channels["fleet-meta"] = {
        "address": "ef/1/fleet/meta/{role}",
        "description": "Retained. One file of the image repository, as TUF JSON.",
        "parameters": {
            "role": {"description": "root-N, timestamp, snapshot, targets or a delegated role"}
        },
        "messages": {"Metadata": {"contentType": "application/json"}},
    }
    operations["hub-sends-fleet-meta"] = {
        "action": "send",
        "channel": {"$ref": "#/channels/fleet-meta"},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edgefleet device protocol",
            "version": __version__,
            "description": "MQTT 3.1.1 over mutual TLS, as seen from the hub.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/vnd.msgpack",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                name: {"payload": payload, "contentType": "application/vnd.msgpack"}
                for name, payload in payloads.items()
            },
            "schemas": schemas,
        },
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=2, ensure_ascii=False))
