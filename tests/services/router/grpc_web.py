"""gRPC-Web, as a browser speaks it."""

import http.client
import struct
from typing import Any


def grpc_web(address: str, request: Any) -> tuple[int, list[bytes], dict[str, str]]:
    """One call as a browser makes it, over HTTP/1.1: status, messages and trailers."""
    connection = http.client.HTTPConnection(address, timeout=10)
    raw = request.SerializeToString()
    body = b"\0" + struct.pack(">I", len(raw)) + raw
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "grpc-timeout": "9S"}
    connection.request("POST", "/headway.v1.ImageGeneration/Generate", body, headers)
    response = connection.getresponse()
    frames = _frames(response.read())
    connection.close()
    messages = [payload for kind, payload in frames if kind == 0]
    (trailer,) = [payload for kind, payload in frames if kind == 0x80]
    pairs = (line.split(":", 1) for line in trailer.decode().split("\r\n") if line)
    return response.status, messages, {name.lower(): value.strip() for name, value in pairs}


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while data:
        kind, size = data[0], struct.unpack(">I", data[1:5])[0]
        frames.append((kind, data[5 : 5 + size]))
        data = data[5 + size :]
    return frames
