"""Checks what callers send, field by field, before anything is admitted."""

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from headway.errors import BadInput, Unimplemented
from headway.ticket import Ticket
from headway.v1 import common_pb2, text_pb2
from services.text_worker.loading import LoadedModel
from services.text_worker.sampling import MAX_TOP_K, Sampling
from services.text_worker.sequence import Sequence, goals_of
from services.text_worker.tokenizer import Detokenizer, StopStrings

DEFAULT_MAX_TOKENS = 128
MOST_STOPS, MOST_STOP_BYTES = 16, 256
MOST_MESSAGES, MOST_ROLE_BYTES = 1024, 64
INLINE_CHARS = 2048  # longer texts are tokenised beside the event loop, which must not wait for them


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    resumed: tuple[int, ...]

    def sequence(self, ticket: Ticket, loaded: LoadedModel) -> Sequence:
        """The engine's noun. Raises BadInput for a floor that `max_tokens` cannot reach, or a finished `resume`."""
        if (ticket.wish.min_tokens or 0) > self.max_tokens:
            raise BadInput("service_level.at_least.tokens", f"must be at most max_tokens, which is {self.max_tokens}")
        sequence = Sequence(
            ticket=ticket,
            tokens=[*self.prompt, *self.resumed],
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens,
            resumed_tokens=len(self.resumed),
            goals=goals_of(ticket.wish, self.max_tokens),
            sampling=self.sampling,
            detokenizer=Detokenizer(loaded.tokenizer),
            stops=StopStrings(self.stops),
        )
        for token in self.resumed:  # what these tokens said was sent; what they held back was not
            sequence.stops.push(sequence.detokenizer.push([token]))
        if sequence.stops.stopped or (self.resumed and sequence.complete):
            raise BadInput("resume.token_ids", "the answer had ended with these tokens")
        return sequence


async def read_ask(request: text_pb2.GenerateRequest, loaded: LoadedModel) -> Ask:
    """Checks a request against a model. Raises BadInput naming the field and the limit, or Unimplemented."""
    _refuse_unserved(request)
    _check_targets(request.service_level)
    prompt = await _prompt_tokens(request, loaded)
    room = loaded.context_tokens - len(prompt)
    if room < 1:
        most = loaded.context_tokens - 1
        raise BadInput(_prompt_field(request), f"has {len(prompt)} tokens; at most {most} leave room for an answer")
    max_tokens = request.max_tokens if request.HasField("max_tokens") else min(DEFAULT_MAX_TOKENS, room)
    if not 1 <= max_tokens <= room:
        raise BadInput("max_tokens", f"must be 1 to {room} with this prompt, not {max_tokens}")
    return Ask(
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=_sampling(request, loaded.sampling),
        stops=_stops(request),
        resumed=_resumed(request, loaded, max_tokens),
    )


async def read_tokenize(request: text_pb2.TokenizeRequest, loaded: LoadedModel) -> list[int]:
    """The tokens of a text or chat. Raises BadInput."""
    match request.WhichOneof("input"):
        case "text":
            return await _encode_text(request.text, loaded)
        case "chat":
            return await _encode_chat(request.chat, loaded)
        case _:
            raise BadInput("input", "one of text and chat must be set")


def _refuse_unserved(request: text_pb2.GenerateRequest) -> None:
    if request.sampling.HasField("min_p"):
        raise Unimplemented("sampling.min_p is not served by this version")
    if request.resume.grammar_state:
        raise Unimplemented("resume.grammar_state is not served by this version")


def _check_targets(level: common_pb2.ServiceLevel) -> None:
    for field in ("first_token_target", "per_token_target"):
        if level.HasField(field) and getattr(level, field).ToNanoseconds() <= 0:
            raise BadInput(f"service_level.{field}", "must be more than 0 s")


def _prompt_field(request: text_pb2.GenerateRequest) -> str:
    return request.WhichOneof("prompt") or "prompt"


async def _prompt_tokens(request: text_pb2.GenerateRequest, loaded: LoadedModel) -> tuple[int, ...]:
    match request.WhichOneof("prompt"):
        case "text":
            return tuple(await _encode_text(request.text, loaded))
        case "chat":
            return tuple(await _encode_chat(request.chat, loaded))
        case "tokens":
            return _checked_ids("tokens.ids", request.tokens.ids, loaded)
        case _:
            raise BadInput("prompt", "one of text, chat and tokens must be set")


async def _encode_text(text: str, loaded: LoadedModel) -> list[int]:
    if not text:
        raise BadInput("text", "must not be empty")
    _check_size("text", len(text), loaded)
    if len(text) <= INLINE_CHARS:
        return loaded.tokenizer.encode(text)
    return await asyncio.to_thread(loaded.tokenizer.encode, text)


async def _encode_chat(chat: text_pb2.Chat, loaded: LoadedModel) -> list[int]:
    if not 1 <= len(chat.messages) <= MOST_MESSAGES:
        raise BadInput("chat.messages", f"must be 1 to {MOST_MESSAGES} messages, not {len(chat.messages)}")
    for index, message in enumerate(chat.messages):
        if not 1 <= len(message.role.encode()) <= MOST_ROLE_BYTES:
            raise BadInput(f"chat.messages[{index}].role", f"must be 1 to {MOST_ROLE_BYTES} bytes")
    _check_size("chat", sum(len(message.content) for message in chat.messages), loaded)
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    try:
        return await asyncio.to_thread(loaded.tokenizer.encode_chat, messages)
    except ValueError as error:
        raise BadInput("chat", str(error)) from error


def _check_size(field: str, chars: int, loaded: LoadedModel) -> None:
    """A text that could not fit whatever its tokens are is refused before it costs the time to tokenise it."""
    most = loaded.context_tokens * loaded.tokenizer.longest_token_chars
    if chars > most:
        raise BadInput(field, f"has {chars} characters; {loaded.context_tokens} tokens hold at most {most}")


def _checked_ids(field: str, ids: Iterable[int], loaded: LoadedModel) -> tuple[int, ...]:
    tokens = tuple(ids)
    if not 1 <= len(tokens) <= loaded.context_tokens:
        raise BadInput(field, f"must be 1 to {loaded.context_tokens} ids, not {len(tokens)}")
    if max(tokens) >= loaded.vocabulary:
        raise BadInput(field, f"ids must be below {loaded.vocabulary}, not {max(tokens)}")
    return tokens


def _sampling(request: text_pb2.GenerateRequest, default: Sampling) -> Sampling:
    given = request.sampling
    if given.HasField("top_k") and given.top_k > MAX_TOP_K:
        raise BadInput("sampling.top_k", f"must be 0 to {MAX_TOP_K}, not {given.top_k}")
    try:
        return Sampling(
            temperature=given.temperature if given.HasField("temperature") else default.temperature,
            top_k=(given.top_k or None) if given.HasField("top_k") else default.top_k,
            top_p=given.top_p if given.HasField("top_p") else default.top_p,
            seed=_seed(request),
        )
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise BadInput(f"sampling.{field}", problem) from error


def _seed(request: text_pb2.GenerateRequest) -> int:
    """The seed to draw with; one that nobody gave is drawn now and told in the summary."""
    seed = request.sampling.seed if request.sampling.HasField("seed") else None
    if not request.HasField("resume"):
        return secrets.randbits(64) if seed is None else seed
    if seed not in (None, request.resume.seed):
        raise BadInput("resume.seed", f"is {request.resume.seed}, but sampling.seed is {seed}")
    return request.resume.seed


def _stops(request: text_pb2.GenerateRequest) -> tuple[str, ...]:
    if len(request.stop) > MOST_STOPS:
        raise BadInput("stop", f"must be at most {MOST_STOPS} strings, not {len(request.stop)}")
    for index, stop in enumerate(request.stop):
        if not 1 <= len(stop.encode()) <= MOST_STOP_BYTES:
            raise BadInput(f"stop[{index}]", f"must be 1 to {MOST_STOP_BYTES} bytes, not {len(stop.encode())}")
    return tuple(request.stop)


def _resumed(request: text_pb2.GenerateRequest, loaded: LoadedModel, max_tokens: int) -> tuple[int, ...]:
    if not request.HasField("resume"):
        return ()
    resume = request.resume
    if resume.sampler_position != len(resume.token_ids):
        raise BadInput("resume.sampler_position", f"must be the {len(resume.token_ids)} of resume.token_ids")
    if len(resume.token_ids) >= max_tokens:
        raise BadInput("resume.token_ids", f"must be fewer than max_tokens, which is {max_tokens}")
    if not resume.token_ids:
        return ()
    tokens = _checked_ids("resume.token_ids", resume.token_ids, loaded)
    if not loaded.tokenizer.eos_ids.isdisjoint(tokens):
        raise BadInput("resume.token_ids", "the answer had ended with these tokens")
    return tokens
