"""Answers whose worker dies or stalls go on with another one: nothing is lost, nothing comes twice."""

import asyncio
import signal
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cancelling import admitted

from headway.continuing import Images, Text
from headway.deadline import PROMISED
from headway.requests import images_request, text_request
from headway.v1 import image_pb2, text_pb2
from services.router.throttle import RetryThrottle

TOKENS = [3, 6, 9, 12]
"""What the sum workers say to a prompt of 3 characters."""


async def begun(call: Any) -> list[Any]:
    """The plan and two parts; the worker takes no further step."""
    return [await call.read() for _ in range(3)]


async def rest(call: Any) -> list[Any]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


def parts(messages: list[Any]) -> list[str]:
    return [message.WhichOneof("part") for message in messages]


def whole_text(messages: list[Any]) -> tuple[list[int], list[int], str]:
    chunks = [message.chunk for message in messages if message.HasField("chunk")]
    return (
        [token for chunk in chunks for token in chunk.token_ids],
        [chunk.offset for chunk in chunks],
        "".join(chunk.text for chunk in chunks),
    )


async def test_the_next_worker_is_told_that_the_answer_was_promised(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("text", "2")
    other = await mesh.worker("text", name="other", closed=True)
    client = await mesh.router(f"text={first.address}", other)
    call = client.text.Generate(text_request("abc"), timeout=20)
    await begun(call)
    first.process.send_signal(signal.SIGKILL)
    assert (await admitted(other)).budget.promised
    other.engine.gate.set()
    await rest(call)
    other.engine.gate.clear()
    newcomer = client.text.Generate(text_request("abc"), timeout=20)
    assert not (await admitted(other)).budget.promised
    other.engine.gate.set()
    await rest(newcomer)
    other.engine.gate.clear()
    passed_on = client.text.Generate(text_request("abc"), timeout=20, metadata=(PROMISED,))
    assert (await admitted(other)).budget.promised
    other.engine.gate.set()
    await rest(passed_on)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_text_goes_on_where_it_was_cut_off(mesh: Any, worker_process: Any, how: signal.Signals) -> None:
    first = await worker_process("text", "2")
    other = await mesh.worker("text", name="other", step_ms=5)
    client = await mesh.router(f"text={first.address}", other)
    call = client.text.Generate(text_request("abc"), timeout=20)
    messages = await begun(call)
    first.process.send_signal(how)
    messages += await rest(call)
    assert parts(messages) == ["plan", *["chunk"] * 4, "summary"]
    assert whole_text(messages) == (TOKENS, [0, 1, 2, 3], "3 6 9 12 ")
    summary = messages[-1].summary
    assert (summary.served.worker_id, summary.served.attempts) == ("text-other", 2)
    assert summary.usage.completion_tokens == 4
    assert summary.seed  # drawn by the router, so that both drew from the same noise


async def test_a_text_waits_for_its_only_worker_to_come_back(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("text", "2")
    client = await mesh.router(f"text={first.address}")
    call = client.text.Generate(text_request("abc", seed=7), timeout=20)
    messages = await begun(call)
    await first.end()
    await mesh.worker("text", name="again", listen=first.address)
    messages += await rest(call)
    assert whole_text(messages)[0] == TOKENS
    assert messages[-1].summary.served.worker_id == "text-again"
    assert messages[-1].summary.seed == 7


async def test_images_that_were_sent_do_not_come_twice(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("image", "2")
    other = await mesh.worker(name="other", step_ms=5)
    client = await mesh.router(f"image={first.address}", other)
    call = client.images.Generate(images_request(3), timeout=20)
    messages = await begun(call)
    first.process.send_signal(signal.SIGKILL)
    messages += await rest(call)
    assert parts(messages) == ["plan", *["batch"] * 4, "summary"]
    images = [image for message in messages for image in message.batch.images]
    assert [(image.index, image.data) for image in images] == [(0, b"3"), (1, b"6"), (2, b"9"), (3, b"12")]
    assert messages[-1].summary.served.attempts == 2
    assert messages[-1].summary.seed


async def test_a_call_to_the_only_worker_is_not_given_up_because_it_stalls(mesh: Any, worker_process: Any) -> None:
    stalled = await worker_process("text")
    client = await mesh.router(f"text={stalled.address}")
    stalled.process.send_signal(signal.SIGSTOP)
    call = asyncio.ensure_future(rest(client.text.Generate(text_request("abc"), timeout=20)))
    await client.until(lambda workers: workers[0].detail != "")
    stalled.process.send_signal(signal.SIGCONT)
    assert whole_text(await call)[0] == TOKENS


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=3), max_size=6),
    st.lists(st.integers(0, 99), max_size=3),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_the_next_request_resumes_after_all_tokens_that_were_passed_on(
    chunks: list[list[int]], before: list[int], seed: int | None
) -> None:
    request = text_request("abc", seed=seed)
    if before:
        request.resume.CopyFrom(text_pb2.Resume(token_ids=before, seed=5, sampler_position=len(before)))
        request.sampling.ClearField("seed")
    answer = Text(request.SerializeToString(), request)
    first = text_pb2.GenerateRequest.FromString(answer.first())
    for chunk in chunks:
        answer.passed(text_pb2.GenerateResponse(chunk=text_pb2.TokenChunk(token_ids=chunk)).SerializeToString())
    raw = answer.next()
    assert raw is not None
    following = text_pb2.GenerateRequest.FromString(raw)
    tokens = before + [token for chunk in chunks for token in chunk]
    assert list(following.resume.token_ids) == tokens
    assert following.text == first.text == "abc"
    if tokens:
        assert following.resume.sampler_position == len(tokens)
        assert following.resume.seed == (5 if before else first.sampling.seed)
    if seed is not None and not before:
        assert first.sampling.seed == seed


def test_an_answer_whose_end_was_passed_on_does_not_go_on() -> None:
    text = Text(b"", text_pb2.GenerateRequest())
    text.passed(text_pb2.GenerateResponse(summary=text_pb2.GenerateSummary(seed=1)).SerializeToString())
    images = Images(b"", image_pb2.GenerateImagesRequest())
    images.passed(image_pb2.GenerateImagesResponse(summary=image_pb2.ImagesSummary(seed=1)).SerializeToString())
    assert text.next() is images.next() is None


def test_retries_stop_when_most_workers_are_lost_and_come_back_with_answers() -> None:
    throttle = RetryThrottle(tokens=4, gain=0.5)
    throttle.lost()
    assert throttle.allows
    throttle.lost()
    assert not throttle.allows
    throttle.answered()
    assert throttle.allows


def test_a_worker_that_takes_many_calls_with_it_is_lost_once() -> None:
    throttle = RetryThrottle(tokens=4)
    for call in range(30):
        throttle.worker_lost("one", 10.0 + call / 100)
    assert throttle.allows
    throttle.worker_lost("other", 10.0)
    assert not throttle.allows


async def test_all_of_many_texts_go_on_when_their_worker_dies(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("text", "2")
    other = await mesh.worker("text", name="other", step_ms=5)
    client = await mesh.router(f"text={first.address}", other, healthy=2, placement="round-robin")
    other.engine.gate.clear()
    calls = [client.text.Generate(text_request("abc"), timeout=20) for _ in range(48)]
    plans = [await call.read() for call in calls]
    workers = [plan.plan.worker_id for plan in plans]
    assert workers.count("text-process") > 12
    first.process.send_signal(signal.SIGKILL)
    other.engine.gate.set()
    for call, plan in zip(calls, plans, strict=True):
        assert whole_text([plan, *await rest(call)]) == (TOKENS, [0, 1, 2, 3], "3 6 9 12 ")
