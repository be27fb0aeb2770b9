"""An HTTP server that streams completions at a pace: `python -m benchmarks.hop.paced` prints its port.

It stands where vLLM or another OpenAI-compatible server would, and computes nothing: what is measured in front of it is
the hops. The first token comes at once, each next one a pace later, on the stream's own clock; token i says `word(i)`.
The pace is `PACE_S`, and `SLOW_PACE_S` for the prompt `SLOW`.
Speaks as much of HTTP/1.1 as the text worker asks for: GET /v1/models, POST /v1/completions, one request at a time on a
connection, answers in chunks.
"""

import asyncio
import json
from typing import Any

import uvloop

MODEL = "paced"
PACE_S, SLOW_PACE_S = 0.025, 5.0
PROMPT, SLOW = "Once upon a time", "A long time ago"
CONTEXT_TOKENS = 4096
MOST_BODY_BYTES = 1 << 20


def word(index: int) -> str:
    """What the token at this place says."""
    return f"w{index} "


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _event(choice: dict[str, Any], **rest: Any) -> bytes:
    return _chunk(b"data: " + json.dumps({"choices": [choice], **rest}).encode() + b"\n\n")


TOKENS = [_event({"index": 0, "text": word(index), "finish_reason": None}) for index in range(CONTEXT_TOKENS)]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, request by request."""
    try:
        while (request := await _request(reader)) is not None:
            path, body = request
            if path == "/v1/models":
                _answer(writer, 200, {"data": [{"id": MODEL, "max_model_len": CONTEXT_TOKENS}]})
            elif path == "/v1/completions":
                asked = json.loads(body)
                await _stream(writer, asked["max_tokens"], SLOW_PACE_S if asked["prompt"] == SLOW else PACE_S)
            else:
                _answer(writer, 404, {})
            await writer.drain()
    except (OSError, ValueError, KeyError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the worker is gone, or what it sent is no request that this server knows: it is cut off
    finally:
        writer.close()


async def _request(reader: asyncio.StreamReader) -> tuple[str, bytes] | None:
    """(path, body) of the next request; None at the connection's end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    size = int(fields.get("content-length", "0"))
    if not 0 <= size <= MOST_BODY_BYTES:
        raise ValueError("a body of that size is not read")
    return head[0].split(" ")[1], await reader.readexactly(size)


def _answer(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    payload = json.dumps(body).encode()
    writer.write(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n%s" % (status, len(payload), payload))


async def _stream(writer: asyncio.StreamWriter, count: int, pace_s: float) -> None:
    if not 1 <= count <= CONTEXT_TOKENS:
        raise ValueError("max_tokens")
    loop = asyncio.get_running_loop()
    writer.write(HEAD)
    began_s = loop.time()
    for index in range(count):
        wait_s = began_s + index * pace_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        writer.write(TOKENS[index])
    writer.write(_event({"index": 0, "text": "", "finish_reason": "length"}) + END)


async def main() -> None:
    """Serves on loopback until it is killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
