"""The local server of the Open Inference Protocol v2, over HTTP on loopback or a Unix socket.

`datatypes`, `requests`, `replies` and `encodings` hold the protocol: bytes in, values out, and no
socket in them. `application` is the ASGI application over them, `admission` and `workers` bound
what it takes and run the models, `listener` is its socket and its thread, `address` where it may
listen. Only `address` is imported where no server is configured.
"""
