"""`headway.v1.TextGeneration` in front of a remote server."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from headway.errors import BadInput, HeadwayError, Unimplemented
from headway.quality import Wish
from headway.ticket import Finished
from headway.v1 import text_pb2, text_pb2_grpc
from headway.worker import LoadedAsset, WorkerRuntime
from services.text_worker.remote.engine import RemoteSequence
from services.text_worker.remote.protocol import call_of
from services.text_worker.requests import DEFAULT_MAX_TOKENS, check_chat, check_targets
from services.text_worker.sampling import SEED_LIMIT, Sampling
from services.text_worker.sampling_fields import read_count, read_sampling, read_stops, read_structure
from services.text_worker.sequence import Delta, Ending, goals_of
from services.text_worker.structure import check

MOST_PROMPT_CHARS = 4 * 2**20
ANY_TOKEN = 2**32
"""The server's vocabulary is not known here; it judges ids itself."""


class RemoteTextServicer(text_pb2_grpc.TextGenerationServicer):
    """Serves one model of the server."""

    def __init__(self, runtime: WorkerRuntime, model: str, context_tokens: int) -> None:
        self._runtime, self._model, self._context = runtime, model, context_tokens

    async def Generate(
        self, request: text_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Plan, chunks as the server sends them, summary."""
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("model", request.model)
        ticket = self._runtime.ticket(budget, request.service_level, asset.ladder)
        sampling = _checked(request)
        request.sampling.seed = sampling.seed % 2**63  # what servers take
        sequence = self._sequence(request, ticket, ticket.wish)
        async with aclosing(self._runtime.events(sequence)) as events:
            async for event in events:
                if isinstance(event, HeadwayError):
                    raise event
                yield self._response(event, sequence, asset, request.sampling.seed)

    async def Tokenize(self, request: text_pb2.TokenizeRequest, context: Any) -> text_pb2.TokenizeResponse:
        """The tokenizer is the server's own."""
        self._runtime.budget(context)
        raise Unimplemented("Tokenize is not served in front of an OpenAI-compatible server")

    async def ListModels(
        self, request: text_pb2.ListTextModelsRequest, context: Any
    ) -> text_pb2.ListTextModelsResponse:
        """The one model that this worker stands for; its vocabulary is not known."""
        models = [
            text_pb2.TextModel(
                name=asset.name, hash=asset.hash, context_tokens=self._context, ladder=asset.ladder.to_proto()
            )
            for asset in self._runtime.identity.assets
        ]
        return text_pb2.ListTextModelsResponse(models=models)

    def _sequence(self, request: text_pb2.GenerateRequest, ticket: Any, wish: Wish) -> RemoteSequence:
        max_tokens = request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS
        if not 1 <= max_tokens <= self._context:
            raise BadInput("max_tokens", f"must be 1 to {self._context}, not {max_tokens}")
        if (wish.min_tokens or 0) > max_tokens:
            raise BadInput("service_level.at_least.tokens", f"must be at most max_tokens, which is {max_tokens}")
        goals = goals_of(wish, max_tokens)
        return RemoteSequence(ticket, call_of(request, self._model, goals[0].tokens), max_tokens, goals)

    def _response(
        self, event: Any, sequence: RemoteSequence, asset: LoadedAsset, seed: int
    ) -> text_pb2.GenerateResponse:
        match event:
            case Delta():
                chunk = text_pb2.TokenChunk(token_ids=event.token_ids, offset=event.offset, text=event.text)
                return text_pb2.GenerateResponse(chunk=chunk)
            case Finished():
                ending: Ending = event.result
                served = self._runtime.served(sequence.ticket, asset, rung=ending.rung, quality=ending.quality)
                usage = text_pb2.Usage(prompt_tokens=sequence.prompt_tokens, completion_tokens=sequence.tokens)
                summary = text_pb2.GenerateSummary(finish_reason=ending.reason, usage=usage, served=served, seed=seed)
                return text_pb2.GenerateResponse(summary=summary)
            case _:
                return text_pb2.GenerateResponse(plan=event)


def _checked(request: text_pb2.GenerateRequest) -> Sampling:
    """What can be judged without the model. Raises BadInput, and Unimplemented for several answers."""
    check_targets(request.service_level)
    sampling = read_sampling(request, Sampling(temperature=1.0), ANY_TOKEN)
    if read_count(request, sampling) > 1:
        raise Unimplemented("n is not served in front of an OpenAI-compatible server")
    read_stops(request, ANY_TOKEN)
    structure = read_structure(request)
    if structure is not None:
        check(structure)
    match request.WhichOneof("prompt"):
        case "text" if not 1 <= len(request.text) <= MOST_PROMPT_CHARS:
            raise BadInput("text", f"must be 1 to {MOST_PROMPT_CHARS} characters")
        case "tokens" if not 1 <= len(request.tokens.ids) <= MOST_PROMPT_CHARS:
            raise BadInput("tokens.ids", f"must be 1 to {MOST_PROMPT_CHARS} ids")
        case "chat":
            check_chat(request.chat)
        case _:
            pass
    if request.sampling.seed >= SEED_LIMIT:  # a uint64 cannot be
        raise BadInput("sampling.seed", "is too large")
    return sampling
