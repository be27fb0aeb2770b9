"""The OpenAI API as a server speaks it: a request's JSON, and the pieces of a streamed answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headway.errors import BadInput, Unimplemented
from headway.v1 import text_pb2

MAX_LINE_BYTES = 2**20
FINISHES = {
    "stop": text_pb2.FINISH_REASON_STOP,
    "length": text_pb2.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One POST: the path under the base URL, and the JSON body."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of a stream says."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    """Empty for servers that do not tell them; then an event with text counts as one token."""
    finish: text_pb2.FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.token_ids) or (1 if self.text else 0)


def call_of(request: text_pb2.GenerateRequest, model: str, max_tokens: int) -> Call:
    """The call for a checked request. Fields that only some servers know are sent only where they are set.

    Raises BadInput, and Unimplemented for what cannot be asked of such a server.
    """
    if request.HasField("resume"):
        raise Unimplemented("resume is not served in front of an OpenAI-compatible server")
    options = {"include_usage": True}
    body = {"model": model, "max_tokens": max_tokens, "stream": True, "stream_options": options} | _sampling(request)
    if request.stop:
        body["stop"] = list(request.stop)
    if request.stop_token_ids:
        body["stop_token_ids"] = list(request.stop_token_ids)
    body |= _structure(request)
    match request.WhichOneof("prompt"):
        case "chat":
            messages = [{"role": item.role, "content": item.content} for item in request.chat.messages]
            return Call("chat/completions", body | {"messages": messages})
        case "tokens":
            return Call("completions", body | {"prompt": list(request.tokens.ids)})
        case "text":
            return Call("completions", body | {"prompt": request.text})
        case _:
            raise BadInput("prompt", "one of text, chat and tokens must be set")


def _sampling(request: text_pb2.GenerateRequest) -> dict[str, Any]:
    given = request.sampling
    if given.HasField("logprobs"):
        raise Unimplemented("sampling.logprobs is not served in front of an OpenAI-compatible server")
    optional = ("temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty")
    body: dict[str, Any] = {name: getattr(given, name) for name in optional if given.HasField(name)}
    body |= {name: getattr(given, name) for name in ("presence_penalty", "frequency_penalty") if getattr(given, name)}
    if given.logit_bias:
        body["logit_bias"] = {str(item.token_id): item.bias for item in given.logit_bias}
    return body


def _structure(request: text_pb2.GenerateRequest) -> dict[str, Any]:
    """A schema in OpenAI's own form; the others as vLLM reads them."""
    match request.structure.WhichOneof("kind"):
        case None:
            return {}
        case "json_schema":
            try:
                schema = json.loads(request.structure.json_schema)
            except (ValueError, RecursionError) as error:
                raise BadInput("structure.json_schema", f"is not JSON: {error}") from error
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case kind:
            return {"structured_outputs": {kind: getattr(request.structure, kind)}}


class Events:
    """Cuts a stream of server-sent events into their JSON objects."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, received: bytes) -> Iterator[dict[str, Any]]:
        """The objects that these bytes complete. Raises ValueError for what is no such stream."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"an event of more than {MAX_LINE_BYTES} bytes")
        for line in lines:
            name, _, value = line.strip().partition(b":")
            if name == b"data" and value.strip() != b"[DONE]":
                yield _object(value)


def _object(value: bytes) -> dict[str, Any]:
    try:
        event = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an event that is not JSON: {error}") from error
    if not isinstance(event, dict):
        raise ValueError("an event that is no object")
    return event


def read_piece(event: dict[str, Any]) -> Piece:
    """A chunk of either endpoint. Raises ValueError for one in no known form, and for the server's own error."""
    if event.get("error"):
        raise ValueError(f"the server says: {event['error']!r:.300}")
    choices, usage = event.get("choices") or [{}], event.get("usage") or {}
    try:
        choice = choices[0]
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        finish = choice.get("finish_reason")
        return Piece(
            text=str(text),
            token_ids=tuple(int(token) for token in choice.get("token_ids") or ()),
            finish=None if finish is None else FINISHES.get(finish, text_pb2.FINISH_REASON_STOP),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a chunk in an unknown form: {event!r:.300}") from error
