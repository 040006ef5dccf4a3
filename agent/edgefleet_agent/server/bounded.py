"""HTTP by httptools, as uvicorn speaks it, with a bound on what comes before a body.

The C parser takes heads of any length; h11, which is used where httptools has no wheel, has a bound
of 64 KiB of its own.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class BoundedHttp(HttpToolsProtocol):
    """One connection. A head may exceed its bound by what arrives with one read (256 KiB)."""

    _head_bytes = 0
    _in_body = False

    def data_received(self, data: bytes) -> None:
        """Parse what has come; end the connection if its head is too long."""
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > MAX_HEAD_BYTES:
            self._head_bytes = 0
            self.send_400_response(f"The head of a request has at most {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Note that the body is next, which the application bounds."""
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a head is next."""
        self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()
