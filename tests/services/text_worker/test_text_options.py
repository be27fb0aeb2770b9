"""Structure, several answers, logprobs, biases and stop tokens, through the whole worker with the model that ships."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from text_rig import ENDLESS, GREEDY, LONG_S, ask, refusal, served

from headway.v1 import common_pb2, text_pb2, text_pb2_grpc, worker_pb2, worker_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")
WARM = text_pb2.Sampling(temperature=1.0, seed=5)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["s", "m"]}, "on": {"type": "boolean"}},
    "required": ["name", "size", "on"],
    "additionalProperties": False,
}
BY_SCHEMA = text_pb2.Structure(json_schema=json.dumps(SCHEMA))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[grpc.aio.Channel]:
    async with served(tmp_path_factory.mktemp("calibration")) as open_channel:
        yield open_channel


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
async def test_a_schema_is_kept(channel: grpc.aio.Channel, sampling: text_pb2.Sampling) -> None:
    answer = await ask(channel, max_tokens=200, sampling=sampling, structure=BY_SCHEMA)
    value = json.loads(answer.text)
    assert answer.reason == "STOP"
    assert value.keys() == {"name", "size", "on"}
    assert value["size"] in ("s", "m")
    assert isinstance(value["on"], bool)
    assert answer.summary.served.quality == 1.0


async def test_a_regex_and_a_grammar_are_kept(channel: grpc.aio.Channel) -> None:
    date = await ask(channel, structure=text_pb2.Structure(regex=r"\d{4}-\d{2}-\d{2}"), sampling=WARM)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date.text)
    grammar = text_pb2.Structure(grammar='start: "a" start "b" | "c"')
    nested = await ask(channel, structure=grammar, sampling=WARM, max_tokens=200)
    assert re.fullmatch(r"a*cb*", nested.text)
    assert nested.text.count("a") == nested.text.count("b")


async def test_resume_goes_on_inside_a_structure(channel: grpc.aio.Channel) -> None:
    whole = await ask(channel, max_tokens=200, sampling=WARM, structure=BY_SCHEMA)
    cut = len(whole.token_ids) // 2
    resume = text_pb2.Resume(token_ids=whole.token_ids[:cut], seed=5, sampler_position=cut)
    rest = await ask(channel, max_tokens=200, sampling=WARM, structure=BY_SCHEMA, resume=resume)
    assert rest.token_ids == whole.token_ids[cut:]
    assert whole.text.endswith(rest.text)


async def test_resumed_tokens_must_fit_the_structure(channel: grpc.aio.Channel) -> None:
    resume = text_pb2.Resume(token_ids=[40, 41], seed=5, sampler_position=2)
    error = await refusal(channel, sampling=WARM, structure=BY_SCHEMA, resume=resume)
    assert error.violations == {"resume.token_ids": "do not fit the structure"}


async def test_a_structured_answer_does_not_disturb_its_batch(channel: grpc.aio.Channel) -> None:
    alone = await ask(channel, max_tokens=24)
    structured = ask(channel, max_tokens=200, sampling=WARM, structure=BY_SCHEMA)
    bad = refusal(channel, structure=text_pb2.Structure(regex="(("))
    _, beside, _ = await asyncio.gather(structured, ask(channel, max_tokens=24), bad)
    assert beside.token_ids == alone.token_ids


async def answers(channel: grpc.aio.Channel, **request: Any) -> dict[int, list[text_pb2.GenerateResponse]]:
    parts: dict[int, list[text_pb2.GenerateResponse]] = {}
    stub, numbers = text_pb2_grpc.TextGenerationStub(channel), []
    async for message in stub.Generate(text_pb2.GenerateRequest(chat=ENDLESS, **request), timeout=LONG_S):
        parts.setdefault(message.answer, []).append(message)
        numbers.append((message.answer, message.WhichOneof("part")))
    assert numbers[: len(parts)] == [(answer, "plan") for answer in range(len(parts))]  # all plans come first
    return parts


async def test_n_answers_are_those_of_the_seeds_that_follow(channel: grpc.aio.Channel) -> None:
    parts = await answers(channel, sampling=WARM, n=3, max_tokens=20)
    assert sorted(parts) == [0, 1, 2]
    for answer, messages in parts.items():
        alone = await ask(channel, sampling=text_pb2.Sampling(temperature=1.0, seed=5 + answer), max_tokens=20)
        assert [token for m in messages for token in m.chunk.token_ids] == alone.token_ids
        assert messages[-1].summary.seed == 5 + answer
        assert messages[-1].summary.usage.completion_tokens == len(alone.token_ids)


async def test_n_answers_are_admitted_together_or_not_at_all(channel: grpc.aio.Channel) -> None:
    floor = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(tokens=400))
    asked: dict[str, Any] = {"sampling": WARM, "n": 16, "max_tokens": 400, "service_level": floor}
    watch = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=LONG_S)
    step_ms = next(cost.mean_ms for cost in (await anext(aiter(watch))).step_costs if cost.batch == 1)
    too_small_s = 50 * step_ms / 1000  # for 400 steps
    least_ms = float((await refusal(channel, too_small_s, **asked)).metadata["least_budget_ms"])  # of one alone
    error = await refusal(channel, 1.2 * least_ms / 1000, **asked)  # some of them would be admitted
    assert error.reason_name in ("BUDGET_TOO_SMALL", "SHED")
    state = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=LONG_S)
    async for now in state:
        if now.in_flight == 0:
            return
    raise AssertionError("the state ended")


async def test_logprobs_come_with_every_token(channel: grpc.aio.Channel) -> None:
    parts = (await answers(channel, sampling=text_pb2.Sampling(temperature=0, logprobs=3), max_tokens=10))[0]
    tokens = [token for message in parts for token in message.chunk.token_ids]
    told = [item for message in parts for item in message.chunk.logprobs]
    assert len(told) == len(tokens) == 10
    for token, item in zip(tokens, told, strict=True):
        assert item.likeliest[0].token_id == token  # greedy
        assert item.likeliest[0].logprob == item.logprob <= 0
        assert [one.logprob for one in item.likeliest] == sorted((one.logprob for one in item.likeliest), reverse=True)


async def test_a_bias_and_a_penalty_change_the_answer(channel: grpc.aio.Channel) -> None:
    plain = await ask(channel, max_tokens=12)
    first = text_pb2.LogitBias(token_id=plain.token_ids[0], bias=-100)
    assert (await ask(channel, max_tokens=1, sampling=text_pb2.Sampling(temperature=0, logit_bias=[first]))).token_ids[
        0
    ] != plain.token_ids[0]
    sampling = text_pb2.Sampling(temperature=0, presence_penalty=2, frequency_penalty=2, repetition_penalty=5)
    fresh = await ask(channel, max_tokens=60, sampling=sampling)
    assert len(set(fresh.token_ids)) > len(set((await ask(channel, max_tokens=60)).token_ids))


async def test_a_stop_token_ends_the_answer_before_itself(channel: grpc.aio.Channel) -> None:
    whole = await ask(channel, max_tokens=30)
    stop = whole.token_ids[17]
    cut = await ask(channel, max_tokens=30, stop_token_ids=[stop])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop)]
    assert cut.reason == "STOP"
