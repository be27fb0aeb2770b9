"""The whole text worker over loopback, with the model that ships."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from text_rig import ENDLESS, GREEDY, LONG_S, MODEL, ask, refusal, served
from transformers import AutoTokenizer, LlamaForCausalLM

from headway.continuing import Text
from headway.errors import from_rpc_error
from headway.v1 import common_pb2, text_pb2, text_pb2_grpc, worker_pb2, worker_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[grpc.aio.Channel]:
    async with served(tmp_path_factory.mktemp("calibration")) as open_channel:
        yield open_channel


async def step_ms(channel: grpc.aio.Channel) -> float:
    """What a decode step alone is said to cost now."""
    state = await anext(aiter(worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=5)))
    return next(cost.mean_ms for cost in state.step_costs if cost.batch == 1)


async def test_greedy_tokens_are_those_of_transformers(channel: grpc.aio.Channel) -> None:
    answer = await ask(channel, max_tokens=40)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    question = [{"role": "user", "content": ENDLESS.messages[0].content}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=40)
    new = expected[0, prompt.input_ids.shape[1] :].tolist()
    assert answer.token_ids == new
    assert answer.text == tokenizer.decode(new)
    assert answer.summary.usage.prompt_tokens == prompt.input_ids.shape[1]


async def test_the_summary_says_what_was_served(channel: grpc.aio.Channel) -> None:
    answer = await ask(channel, max_tokens=30)
    served_ = answer.summary.served
    assert (answer.plan.rung.label, answer.plan.steps) == ("100%", 30)
    assert (answer.reason, served_.rung.label, served_.quality) == ("LENGTH", "100%", 1.0)
    assert served_.reason == common_pb2.RUNG_REASON_BEST_FIT
    assert (served_.steps_planned, served_.steps_executed) == (30, 30)
    assert [stage.stage for stage in served_.stages] == ["queue", "prefill", "decode"]
    assert answer.summary.usage.completion_tokens == len(answer.token_ids) == 30
    assert answer.plan.worker_id == served_.worker_id
    assert len(served_.asset_hash) == 64
    assert answer.chunk_sizes[0] == 1  # the first token travels alone
    assert 0 < served_.slack_ms < 1.01 * LONG_S * 1000  # gRPC rounds a timeout up on the wire


async def test_a_seed_repeats_an_answer_and_one_that_is_told_does_so_too(channel: grpc.aio.Channel) -> None:
    drawn = await ask(channel, max_tokens=25, sampling=text_pb2.Sampling(temperature=1.0))
    again = text_pb2.Sampling(temperature=1.0, seed=drawn.summary.seed)
    assert (await ask(channel, max_tokens=25, sampling=again)).token_ids == drawn.token_ids


async def test_the_batch_around_a_request_does_not_change_it(channel: grpc.aio.Channel) -> None:
    requests = [
        {"text": "The " * (1 + 40 * i), "max_tokens": 12, "sampling": text_pb2.Sampling(temperature=0.8, seed=i)}
        for i in range(5)
    ]
    together = await asyncio.gather(*(ask(channel, **request) for request in requests))
    alone = [await ask(channel, **request) for request in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


async def test_a_chat_is_rendered_with_the_models_template(channel: grpc.aio.Channel) -> None:
    chat = text_pb2.Chat(messages=[text_pb2.ChatMessage(role="user", content="What is asyncio.Queue?")])
    ids = AutoTokenizer.from_pretrained(MODEL).apply_chat_template(
        [{"role": "user", "content": "What is asyncio.Queue?"}], add_generation_prompt=True
    )["input_ids"]
    stub = text_pb2_grpc.TextGenerationStub(channel)
    assert list((await stub.Tokenize(text_pb2.TokenizeRequest(chat=chat), timeout=5)).ids) == ids
    by_chat = await ask(channel, chat=chat, max_tokens=20)
    by_tokens = await ask(channel, tokens=text_pb2.TokenIds(ids=ids), max_tokens=20)
    assert by_chat.token_ids == by_tokens.token_ids


async def test_a_stop_string_cuts_the_text_where_it_begins(channel: grpc.aio.Channel) -> None:
    whole = await ask(channel, max_tokens=60)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 7]
    cut = await ask(channel, max_tokens=60, stop=["never met", stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.reason == "STOP_STRING"
    assert cut.summary.served.quality == 1.0


async def test_resume_goes_on_where_an_answer_was_cut_off(channel: grpc.aio.Channel) -> None:
    sampling = text_pb2.Sampling(temperature=0.2, seed=11)
    whole = await ask(channel, max_tokens=30, sampling=sampling, stop=["\0"])
    assert whole.reason == "LENGTH"
    sent = whole.token_ids[:12]
    resume = text_pb2.Resume(token_ids=sent, seed=11, sampler_position=12)
    rest = await ask(channel, max_tokens=30, sampling=sampling, stop=["\0"], resume=resume)
    assert rest.token_ids == whole.token_ids[12:]
    assert rest.offsets[0] == 12
    assert whole.text.endswith(rest.text)
    assert rest.summary.usage.completion_tokens == len(whole.token_ids) - 12


@pytest.mark.parametrize("ends_by", ["LENGTH", "STOP_STRING", "STOP"])
async def test_an_answer_of_which_only_the_end_was_lost_gets_its_end(channel: grpc.aio.Channel, ends_by: str) -> None:
    """As the router asks for it when a worker dies between the last chunk and the summary."""
    fields: dict[str, Any] = {"max_tokens": 30}
    if ends_by == "STOP_STRING":
        fields["stop"] = [(await ask(channel, max_tokens=30)).text[20:26]]
    if ends_by == "STOP":
        fields["structure"] = text_pb2.Structure(regex="[a-z ]{8}")
    request = text_pb2.GenerateRequest(chat=ENDLESS, sampling=GREEDY, **fields)
    stub, answer = text_pb2_grpc.TextGenerationStub(channel), Text(request.SerializeToString(), request)
    *messages, last = [message async for message in stub.Generate(request, timeout=LONG_S)]
    for message in messages:
        answer.passed(message.SerializeToString())
    again = text_pb2.GenerateRequest.FromString(answer.next() or b"")
    rest = [message async for message in stub.Generate(again, timeout=LONG_S)]
    left = [message for message in rest if answer.rest(message)]
    assert [message.WhichOneof("part") for message in rest] == ["plan", "summary"]
    assert [message.WhichOneof("part") for message in left] == ["summary"]
    summary = left[0].summary
    assert text_pb2.FinishReason.Name(summary.finish_reason) == f"FINISH_REASON_{ends_by}"
    assert (summary.finish_reason, summary.usage) == (last.summary.finish_reason, last.summary.usage)
    assert (summary.served.rung, summary.served.quality) == (last.summary.served.rung, last.summary.served.quality)
    assert (summary.served.steps_executed, rest[0].plan.steps) == (0, 0)


async def test_a_token_that_ends_texts_ends_one_that_goes_on_from_it(channel: grpc.aio.Channel) -> None:
    stub = text_pb2_grpc.TextGenerationStub(channel)
    resume = text_pb2.Resume(token_ids=[5, 1], sampler_position=2)
    request = text_pb2.GenerateRequest(chat=ENDLESS, sampling=GREEDY, resume=resume)
    _, last = [message async for message in stub.Generate(request, timeout=LONG_S)]
    assert last.summary.finish_reason == text_pb2.FINISH_REASON_STOP


async def test_a_shorter_deadline_plans_fewer_tokens(channel: grpc.aio.Channel) -> None:
    qualities = []
    for share in (20.0, 0.8, 0.5, 0.3):
        answer = await ask(channel, share * 400 * await step_ms(channel) / 1000, max_tokens=400)
        qualities.append(answer.plan.rung.quality)
        assert answer.plan.predicted_p50_ms <= answer.plan.budget_ms
    assert qualities[0] == 1.0
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[-1] < 0.5


async def test_an_answer_that_the_deadline_cuts_ends_cleanly(channel: grpc.aio.Channel) -> None:
    answer = await ask(channel, 0.2 * 400 * await step_ms(channel) / 1000, max_tokens=400)
    tokens = answer.summary.usage.completion_tokens
    assert answer.reason == "DEADLINE"
    assert 16 <= tokens < 400
    assert answer.summary.served.quality == pytest.approx(tokens / 400)
    assert answer.text == AutoTokenizer.from_pretrained(MODEL).decode(answer.token_ids)


async def test_an_exact_rung_and_a_floor_are_kept(channel: grpc.aio.Channel) -> None:
    half = await ask(channel, max_tokens=40, service_level=common_pb2.ServiceLevel(exact="50%"))
    assert (len(half.token_ids), half.summary.served.rung.label) == (20, "50%")
    assert half.summary.served.reason == common_pb2.RUNG_REASON_EXACT
    assert half.summary.served.quality == 0.5
    floor = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(tokens=30))
    assert len((await ask(channel, max_tokens=40, service_level=floor)).token_ids) >= 30


async def test_what_cannot_be_done_in_time_is_refused_with_the_least_budget(channel: grpc.aio.Channel) -> None:
    floor = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(tokens=400))
    error = await refusal(channel, 0.1, max_tokens=400, service_level=floor)
    assert (error.status, error.reason_name) == (grpc.StatusCode.DEADLINE_EXCEEDED, "BUDGET_TOO_SMALL")
    assert int(error.metadata["least_budget_ms"]) > 100


def chat_of(*messages: tuple[str, str]) -> text_pb2.Chat:
    return text_pb2.Chat(messages=[text_pb2.ChatMessage(role=role, content=content) for role, content in messages])


WARM = text_pb2.Sampling(temperature=1)


def bias(token: int) -> text_pb2.LogitBias:
    return text_pb2.LogitBias(token_id=token, bias=1)


def level(**fields: Any) -> common_pb2.ServiceLevel:
    return common_pb2.ServiceLevel(**fields)


@pytest.mark.parametrize(
    ("request_fields", "named"),
    [
        ({"text": ""}, "text"),
        ({"text": "x " * 2000}, "text"),
        ({"text": "x" * 100_000}, "text"),
        ({"chat": text_pb2.Chat()}, "chat.messages"),
        ({"chat": chat_of(("user", "a"), ("", "b"))}, "chat.messages[1].role"),
        ({"chat": chat_of(("wizard", "a"))}, "chat"),
        ({"tokens": text_pb2.TokenIds()}, "tokens.ids"),
        ({"tokens": text_pb2.TokenIds(ids=[4096])}, "tokens.ids"),
        ({"tokens": text_pb2.TokenIds(ids=[5] * 512)}, "tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 512}, "max_tokens"),
        ({"sampling": text_pb2.Sampling(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": text_pb2.Sampling(temperature=11)}, "sampling.temperature"),
        ({"sampling": text_pb2.Sampling(top_p=0)}, "sampling.top_p"),
        ({"sampling": text_pb2.Sampling(top_k=2**31)}, "sampling.top_k"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["ok", ""]}, "stop[1]"),
        ({"stop": ["ä" * 129]}, "stop[0]"),
        ({"resume": text_pb2.Resume(token_ids=[5, 6], sampler_position=1)}, "resume.sampler_position"),
        ({"resume": text_pb2.Resume(token_ids=[9999], sampler_position=1)}, "resume.token_ids"),
        ({"resume": text_pb2.Resume(token_ids=[1, 5], sampler_position=2)}, "resume.token_ids"),
        ({"resume": text_pb2.Resume(token_ids=[5] * 101, sampler_position=101)}, "resume.token_ids"),
        ({"resume": text_pb2.Resume(token_ids=[5, 6], sampler_position=2), "max_tokens": 1}, "resume.token_ids"),
        ({"resume": text_pb2.Resume(seed=4), "sampling": text_pb2.Sampling(seed=5)}, "resume.seed"),
        ({"resume": text_pb2.Resume(grammar_state=b"x")}, "resume.grammar_state"),
        ({"sampling": text_pb2.Sampling(min_p=1.1)}, "sampling.min_p"),
        ({"sampling": text_pb2.Sampling(repetition_penalty=0)}, "sampling.repetition_penalty"),
        ({"sampling": text_pb2.Sampling(presence_penalty=3)}, "sampling.presence_penalty"),
        ({"sampling": text_pb2.Sampling(frequency_penalty=float("nan"))}, "sampling.frequency_penalty"),
        ({"sampling": text_pb2.Sampling(logprobs=21)}, "sampling.logprobs"),
        ({"sampling": text_pb2.Sampling(logit_bias=[bias(4096)])}, "sampling.logit_bias[0].token_id"),
        ({"sampling": text_pb2.Sampling(logit_bias=[bias(4), bias(4)])}, "sampling.logit_bias"),
        ({"sampling": text_pb2.Sampling(temperature=0, top_p=0.5)}, "sampling.top_p"),
        ({"sampling": text_pb2.Sampling(temperature=0, top_k=5)}, "sampling.top_k"),
        ({"sampling": text_pb2.Sampling(temperature=0, min_p=0.5)}, "sampling.min_p"),
        ({"sampling": WARM, "n": 0}, "n"),
        ({"sampling": WARM, "n": 17}, "n"),
        ({"sampling": GREEDY, "n": 2}, "n"),
        ({"sampling": WARM, "n": 2, "resume": text_pb2.Resume()}, "n"),
        ({"stop_token_ids": range(65)}, "stop_token_ids"),
        ({"stop_token_ids": [4096]}, "stop_token_ids"),
        ({"structure": text_pb2.Structure()}, "structure"),
        ({"structure": text_pb2.Structure(json_schema="{")}, "structure.json_schema"),
        ({"structure": text_pb2.Structure(regex="((")}, "structure.regex"),
        ({"service_level": level(at_least=common_pb2.QualityFloor(tokens=200))}, "service_level.at_least.tokens"),
        ({"service_level": level(at_least=common_pb2.QualityFloor(nfe=2))}, "service_level.at_least"),
        ({"service_level": level(first_token_target={"seconds": -1})}, "service_level.first_token_target"),
    ],
)
async def test_bad_input_names_its_field(channel: grpc.aio.Channel, request_fields: Any, named: str) -> None:
    error = await refusal(channel, **({"max_tokens": 100} | request_fields))
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert list(error.violations) == [named]


async def test_a_request_without_a_prompt_is_refused(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in text_pb2_grpc.TextGenerationStub(channel).Generate(text_pb2.GenerateRequest(), timeout=5):
            pass
    assert list(from_rpc_error(failure.value).violations) == ["prompt"]


@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [
        ({"model": "../../etc/passwd"}, "NOT_FOUND"),
        ({"service_level": level(exact="60%")}, "NO_SUCH_RUNG"),
    ],
)
async def test_what_is_not_there_is_said(channel: grpc.aio.Channel, request_fields: Any, reason: str) -> None:
    assert (await refusal(channel, **request_fields)).reason_name == reason


async def test_a_bad_request_does_not_disturb_the_batch_around_it(channel: grpc.aio.Channel) -> None:
    good, *_ = await asyncio.gather(ask(channel, max_tokens=50), *(refusal(channel, text="") for _ in range(20)))
    assert good.reason == "LENGTH"


async def test_leaving_frees_what_was_held(channel: grpc.aio.Channel) -> None:
    stub = text_pb2_grpc.TextGenerationStub(channel)
    call = stub.Generate(text_pb2.GenerateRequest(chat=ENDLESS, sampling=GREEDY, max_tokens=450), timeout=LONG_S)
    async for message in call:
        if message.WhichOneof("part") == "chunk":
            break
    call.cancel()
    async for state in worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=20):
        if state.in_flight == 0 and state.free_kv_blocks == state.total_kv_blocks > 0:
            return
    raise AssertionError("the state ended")


async def test_the_worker_tells_what_it_is(channel: grpc.aio.Channel) -> None:
    listed = await text_pb2_grpc.TextGenerationStub(channel).ListModels(text_pb2.ListTextModelsRequest(), timeout=5)
    description = await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=5)
    card = json.loads((MODEL / "card.json").read_text())
    (model,) = listed.models
    assert (model.name, model.hash) == (card["name"], card["fingerprint"])
    assert (model.context_tokens, model.vocabulary_size) == (512, 4096)
    assert [rung.label for rung in model.ladder.rungs] == ["100%", "75%", "50%", "25%", "floor"]
    assert description.assets[0].hash == model.hash
    assert (description.kind, description.precision) == (common_pb2.KIND_TEXT, "fp32")
