"""A client of the least possible cost, in a process of its own as applications are.

    python -m tests.bench.http_client HOST PORT REQUEST_FILE SECONDS CONNECTIONS

Sends the bytes of the file again and again, on each connection as soon as the reply is there, and
prints as JSON the median time of one call in µs and how many were answered in a second.
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path
from statistics import median


def call(connection: socket.socket, request: bytes) -> None:
    """Send a request and read its whole reply."""
    connection.sendall(request)
    received = connection.recv(65536)
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not answered: {received[:500]!r}")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    left = length - len(body)
    while left:
        left -= len(connection.recv(left))


def ask(host: str, port: int, request: bytes, seconds: float, times: list[float]) -> None:
    """Call on one connection for some seconds; add what each call took."""
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(50):
            call(connection, request)  # warm
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            call(connection, request)
            times.append(time.perf_counter() - start)


def main(host: str, port: str, file: str, seconds: str, connections: str) -> None:
    """Run the connections at the same time and print what was measured."""
    request = Path(file).read_bytes()
    times: list[float] = []
    threads = [
        threading.Thread(target=ask, args=(host, int(port), request, float(seconds), times))
        for _ in range(int(connections))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"us": median(times) * 1e6, "per_s": len(times) / float(seconds)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
