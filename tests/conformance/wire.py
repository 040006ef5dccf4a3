"""Files by name over MQTT: what a conformance client asks a relay, beside the agent's own messages.

The agent never asks for metadata by name: roles come by themselves, retained. The conformance suite
wants every file asked for, so the client here asks, on the agent's `up/request` topic and in its
codec; a file then travels as an artifact does, in blocks wanted by bitmap (`messages.BlockRequest`,
`messages.Block`, `messages.BlocksUnavailable`).
"""

from typing import Annotated

from msgspec import Meta, Struct

from edgefleet_protocol.messages import Block, BlockRequest, BlocksUnavailable, Count, Digest

Url = Annotated[str, Meta(max_length=2000)]


class FileRequest(Struct, frozen=True, tag="file"):
    """`up/request`: fetch this file."""

    url: Url


class FileAnswer(Struct, frozen=True, tag="file"):
    """`down/blocks`: what came of it.

    Attributes:
        status: of HTTP; 0 if the server did not answer.
        digest: of the content, to ask for its blocks by.
        size_bytes: of the content.
    """

    url: Url
    status: Count
    digest: Digest
    size_bytes: Count


Asked = FileRequest | BlockRequest
Answer = FileAnswer | Block | BlocksUnavailable
