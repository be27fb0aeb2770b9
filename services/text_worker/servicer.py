"""`headway.v1.TextGeneration`: checks a request, hands it to the engine, streams what comes."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, nullcontext
from typing import Any

from headway.errors import HeadwayError
from headway.prefix import tenant_salt
from headway.server import tenant_of_call
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2, text_pb2, text_pb2_grpc
from headway.worker import LoadedAsset, WorkerRuntime
from services.text_worker.interleave import interleaved
from services.text_worker.kv.chain import Chain
from services.text_worker.loading import LoadedModel
from services.text_worker.prefixes import NotedPrompts
from services.text_worker.requests import read_ask, read_tokenize
from services.text_worker.sampling import Drawn
from services.text_worker.sequence import Delta, Ending, Sequence, ending_of
from services.text_worker.sharing.start import Sharing


class TextServicer(text_pb2_grpc.TextGenerationServicer):
    """Serves one loaded model."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        loaded: LoadedModel,
        prompts: NotedPrompts | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """`prompts` is told of every prompt; None where nobody asks which are cached. `sharing`: None shares none."""
        self._runtime, self._loaded, self._prompts, self._sharing = runtime, loaded, prompts, sharing
        self._secret = secrets.token_bytes(32)  # of this process alone, as its cache is

    async def Generate(
        self, request: text_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Plan, token chunks, summary."""
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("model", request.model)
        ask = await read_ask(request, self._loaded)
        tickets = [self._runtime.ticket(budget, request.service_level, asset.ladder) for _ in range(ask.count)]
        sequences = [ask.sequence(ticket, self._loaded, answer) for answer, ticket in enumerate(tickets)]
        tenant = tenant_of_call.get()
        for sequence in sequences:
            sequence.kv.chain = self._chain(tenant)
        if self._prompts is not None:
            self._prompts.note(request, tenant, ask.prompt, sequences[0].kv.chain)
        times = [_TokenTimes(self._runtime, ticket) for ticket in tickets]
        streams = [
            _gathered(self._runtime, sequence, self._sharing)
            if sequence.had_ended is None
            else _ended(self._runtime, sequence)
            for sequence in sequences
        ]
        shared = nullcontext() if self._sharing is None else self._sharing.prompt(sequences)
        with shared:
            async with aclosing(interleaved(streams)) as parts:
                async for answer, part in parts:
                    if isinstance(part, Delta):
                        times[answer].tokens_came(len(part.token_ids))
                    response = self._response(part, sequences[answer], asset)
                    response.answer = answer
                    yield response

    async def Tokenize(self, request: text_pb2.TokenizeRequest, context: Any) -> text_pb2.TokenizeResponse:
        """Counts and lists tokens; takes no device time."""
        self._runtime.budget(context)
        self._runtime.identity.find("model", request.model)
        return text_pb2.TokenizeResponse(ids=await read_tokenize(request, self._loaded))

    async def ListModels(
        self, request: text_pb2.ListTextModelsRequest, context: Any
    ) -> text_pb2.ListTextModelsResponse:
        """The one model that is loaded."""
        return text_pb2.ListTextModelsResponse(
            models=[
                text_pb2.TextModel(
                    name=asset.name,
                    hash=asset.hash,
                    context_tokens=self._loaded.context_tokens,
                    vocabulary_size=self._loaded.vocabulary,
                    ladder=asset.ladder.to_proto(),
                )
                for asset in self._runtime.identity.assets
            ]
        )

    def _chain(self, tenant: str) -> Chain:
        """Names of blocks that only the tenant's prompts share: in all workers that share theirs, or in this one."""
        if self._sharing is not None:
            return self._sharing.chain(tenant)
        return Chain(tenant_salt(self._secret, tenant), self._loaded.cache_fingerprint)

    def _response(
        self, part: common_pb2.Plan | Delta | Ending, sequence: Sequence, asset: LoadedAsset
    ) -> text_pb2.GenerateResponse:
        match part:
            case Delta():
                told = [_logprobs(drawn) for drawn in part.logprobs]
                chunk = text_pb2.TokenChunk(token_ids=part.token_ids, offset=part.offset, text=part.text, logprobs=told)
                return text_pb2.GenerateResponse(chunk=chunk)
            case Ending():
                return text_pb2.GenerateResponse(summary=self._summary(part, sequence, asset))
            case _:
                return text_pb2.GenerateResponse(plan=part)

    def _summary(self, ending: Ending, sequence: Sequence, asset: LoadedAsset) -> text_pb2.GenerateSummary:
        usage = text_pb2.Usage(
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=sequence.new_tokens - sequence.resumed_tokens,
        )
        served = self._runtime.served(sequence.ticket, asset, rung=ending.rung, quality=ending.quality)
        served.cached_tokens = sequence.cached_tokens
        return text_pb2.GenerateSummary(
            finish_reason=ending.reason, usage=usage, served=served, seed=sequence.sampler.sampling.seed
        )


def _logprobs(drawn: Drawn) -> text_pb2.TokenLogprobs:
    likeliest = [text_pb2.LikelyToken(token_id=token, logprob=logprob) for token, logprob in drawn.likeliest]
    return text_pb2.TokenLogprobs(logprob=drawn.logprob, likeliest=likeliest)


async def _gathered(
    runtime: WorkerRuntime, sequence: Sequence, sharing: Sharing | None
) -> AsyncGenerator[common_pb2.Plan | Delta | Ending, None]:
    """The engine's events, deltas that are ready together in one; the first token travels alone.

    While a slow reader holds up the stream more deltas become ready, so that it gets fewer and larger messages.
    """
    queue, first = sequence.ticket.events, True
    async with aclosing(runtime.events(sequence)) as events:
        plan = await anext(events)
        if sharing is not None:
            sharing.admitted(sequence)
        yield plan
        async for event in events:
            held: Any = event
            while isinstance(held, Delta) and not first and not queue.empty():
                following = queue.get_nowait()
                if not isinstance(following, Delta):
                    yield held
                    held = following
                    break
                held = held.with_following(following)
            first = first and not isinstance(held, Delta)
            if isinstance(held, HeadwayError):
                raise held
            yield held.result if isinstance(held, Finished) else held
            if isinstance(held, Finished):
                return


async def _ended(runtime: WorkerRuntime, sequence: Sequence) -> AsyncGenerator[common_pb2.Plan | Delta | Ending, None]:
    """The plan and end of an answer of which only the summary was lost: there is nothing to compute or to admit."""
    ticket, reason = sequence.ticket, sequence.had_ended
    assert reason is not None
    ending = ending_of(sequence, reason)
    ticket.plan = common_pb2.Plan(
        rung=ending.rung.to_proto(),
        reason=common_pb2.RUNG_REASON_EXACT if ticket.wish.exact else common_pb2.RUNG_REASON_BEST_FIT,
        budget_ms=ticket.budget.total_s * 1000,
        worker_id=runtime.identity.worker_id,
    )
    yield ticket.plan
    yield ending


class _TokenTimes:
    """Measures the time to the first token and between tokens, as the caller's stream sees them."""

    def __init__(self, runtime: WorkerRuntime, ticket: Ticket) -> None:
        self._service, self._last_s = runtime.service, ticket.budget.arrival_s
        self._first = True

    def tokens_came(self, count: int) -> None:
        """`count` tokens are on their way to the caller."""
        now_s, metrics = self._service.clock(), self._service.metrics
        if count and self._first:
            metrics.first_token.observe(now_s - self._last_s)
            self._first = False
        else:
            for _ in range(count):
                metrics.inter_token.observe((now_s - self._last_s) / count)
        self._last_s = now_s if count else self._last_s
