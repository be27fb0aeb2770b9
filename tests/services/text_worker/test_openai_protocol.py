"""The OpenAI API's pieces: calls that are made, streams cut anywhere, what servers must not be able to do to us."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, Unimplemented
from headway.v1 import text_pb2
from services.text_worker.remote.protocol import MAX_LINE_BYTES, Events, call_of, read_piece
from services.text_worker.remote.streams import requests_in

OBJECTS = [{"choices": [{"text": "a\n ä"}]}, {"choices": []}, {"usage": {"completion_tokens": 3}}]
STREAM = b": hello\n\n" + b"".join(f"data: {json.dumps(o)}\r\n\r\n".encode() for o in OBJECTS) + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    events, places = Events(), [0, *sorted(cuts), len(STREAM)]
    read = [event for a, b in itertools.pairwise(places) for event in events.push(STREAM[a:b])]
    assert read == OBJECTS


@pytest.mark.parametrize("received", [b"data: {\n", b"data: [1]\n", b"x" * (MAX_LINE_BYTES + 1), b"data: \xff\n"])
def test_what_is_no_stream_is_an_error(received: bytes) -> None:
    with pytest.raises(ValueError, match="an event"):
        list(Events().push(received))


@pytest.mark.parametrize(
    "event", [{"error": {"message": "no"}}, {"choices": 7}, {"choices": [None]}, {"choices": [[]]}]
)
def test_a_chunk_in_no_known_form_is_an_error(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"server says|unknown form"):
        read_piece(event)


def test_chunks_of_both_endpoints_are_read() -> None:
    assert read_piece({"choices": [{"text": "a", "token_ids": [3, 4]}]}).tokens == 2
    chat = read_piece({"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]})
    assert (chat.text, chat.tokens, chat.finish) == ("b", 1, text_pb2.FINISH_REASON_LENGTH)
    assert read_piece({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).prompt_tokens == 5


def test_a_call_holds_what_was_asked_and_nothing_else() -> None:
    sampling = text_pb2.Sampling(temperature=0, top_k=5, logit_bias=[text_pb2.LogitBias(token_id=3, bias=-1)])
    request = text_pb2.GenerateRequest(text="x", sampling=sampling, stop=["\n"])
    call = call_of(request, "m", 7)
    asked = {"temperature": 0.0, "top_k": 5, "logit_bias": {"3": -1.0}, "stop": ["\n"], "prompt": "x", "max_tokens": 7}
    always = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert (call.path, call.body) == ("completions", asked | always)
    chat = text_pb2.Chat(messages=[text_pb2.ChatMessage(role="user", content="hi")])
    call = call_of(text_pb2.GenerateRequest(chat=chat), "m", 7)
    assert (call.path, call.body["messages"]) == ("chat/completions", [{"role": "user", "content": "hi"}])
    schema = text_pb2.Structure(json_schema='{"type": "object"}')
    body = call_of(text_pb2.GenerateRequest(text="x", structure=schema), "m", 7).body
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("field", [{"resume": text_pb2.Resume()}, {"sampling": text_pb2.Sampling(logprobs=1)}])
def test_what_such_a_server_cannot_do_is_said(field: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented):
        call_of(text_pb2.GenerateRequest(text="x", **field), "m", 7)


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(BadInput, match="prompt"):
        call_of(text_pb2.GenerateRequest(), "m", 7)


def test_load_is_read_from_metrics() -> None:
    vllm = 'vllm:num_requests_running{model_name="m"} 3.0\nvllm:num_requests_waiting{model_name="m"} 2.0\nother 9\n'
    assert requests_in(vllm) == 5
    assert requests_in("sglang:num_running_reqs 4\nsglang:num_queue_reqs 1\n") == 5
    assert requests_in("process_cpu_seconds_total 4\n") == 0
