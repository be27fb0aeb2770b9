"""Checks what callers send, field by field, before anything is admitted."""

import asyncio
from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from headway.errors import BadInput
from headway.ticket import Ticket
from headway.v1 import common_pb2, text_pb2
from services.text_worker.loading import LoadedModel
from services.text_worker.sampling import SEED_LIMIT, Sampler, Sampling
from services.text_worker.sampling_fields import Stops, read_count, read_sampling, read_stops, read_structure
from services.text_worker.sequence import Sequence, goals_of
from services.text_worker.structure import Guide
from services.text_worker.tokenizer import Detokenizer, StopStrings

DEFAULT_MAX_TOKENS = 128
MOST_MESSAGES, MOST_ROLE_BYTES = 1024, 64
INLINE_CHARS = 2048  # longer texts are tokenised beside the event loop, which must not wait for them


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    count: int
    """Answers."""
    stops: Stops
    resumed: tuple[int, ...]
    guides: tuple[Guide, ...]
    """One an answer, behind the resumed tokens; none without a structure."""

    def sequence(self, ticket: Ticket, loaded: LoadedModel, answer: int = 0) -> Sequence:
        """The engine's noun for one of the answers.

        Raises BadInput for a floor that `max_tokens` cannot reach, or a `resume` with tokens behind the answer's end.
        """
        if (ticket.wish.min_tokens or 0) > self.max_tokens:
            raise BadInput("service_level.at_least.tokens", f"must be at most max_tokens, which is {self.max_tokens}")
        sequence = Sequence(
            ticket=ticket,
            tokens=list(self.prompt),
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens,
            resumed_tokens=len(self.resumed),
            goals=goals_of(ticket.wish, self.max_tokens),
            sampler=self._sampler(answer),
            end_ids=loaded.tokenizer.eos_ids | self.stops.token_ids,
            detokenizer=Detokenizer(loaded.tokenizer),
            stops=StopStrings(self.stops.strings),
        )
        sequence.had_ended = _take_again(sequence, self.resumed)
        return sequence

    def _sampler(self, answer: int) -> Sampler:
        sampling = replace(self.sampling, seed=(self.sampling.seed + answer) % SEED_LIMIT)
        guide = self.guides[answer] if self.guides else None
        return Sampler.start(sampling, self.prompt, self.resumed, guide)


def _take_again(sequence: Sequence, resumed: Several[int]) -> text_pb2.FinishReason | None:
    """Adds the tokens that were sent, with what they said; gives why the answer had ended with the last of them.

    Raises BadInput where it had ended with an earlier one.
    """
    last: int | None = None
    for token in resumed:
        if last in sequence.end_ids or sequence.stops.stopped or sequence.complete:
            raise BadInput("resume.token_ids", "has tokens behind the answer's end")
        sequence.tokens.append(token)
        sequence.stops.push(sequence.detokenizer.push([token]))  # what they held back was not sent
        last = token
    if last in sequence.end_ids:
        return text_pb2.FINISH_REASON_STOP
    return sequence.reason_to_end if resumed else None


async def read_ask(request: text_pb2.GenerateRequest, loaded: LoadedModel) -> Ask:
    """Checks a request against a model. Raises BadInput naming the field and the limit."""
    check_targets(request.service_level)
    sampling = read_sampling(request, loaded.sampling, loaded.vocabulary)
    count, stops = read_count(request, sampling), read_stops(request, loaded.vocabulary)
    prompt = await _prompt_tokens(request, loaded)
    room = loaded.context_tokens - len(prompt)
    if room < 1:
        most = loaded.context_tokens - 1
        raise BadInput(_prompt_field(request), f"has {len(prompt)} tokens; at most {most} leave room for an answer")
    max_tokens = request.max_tokens if request.HasField("max_tokens") else min(DEFAULT_MAX_TOKENS, room)
    if not 1 <= max_tokens <= room:
        raise BadInput("max_tokens", f"must be 1 to {room} with this prompt, not {max_tokens}")
    resumed = _resumed(request, loaded, max_tokens)
    guides = await _guides(request, loaded, count, resumed)
    return Ask(prompt, max_tokens, sampling, count, stops, resumed, guides)


async def _guides(
    request: text_pb2.GenerateRequest, loaded: LoadedModel, count: int, resumed: tuple[int, ...]
) -> tuple[Guide, ...]:
    """Compiled beside the event loop."""
    structure = read_structure(request)
    if structure is None:
        return ()
    return tuple([await asyncio.to_thread(loaded.structures.guide, structure, resumed) for _ in range(count)])


async def read_tokenize(request: text_pb2.TokenizeRequest, loaded: LoadedModel) -> list[int]:
    """The tokens of a text or chat. Raises BadInput."""
    match request.WhichOneof("input"):
        case "text":
            return await _encode_text(request.text, loaded)
        case "chat":
            return await _encode_chat(request.chat, loaded)
        case _:
            raise BadInput("input", "one of text and chat must be set")


def check_targets(level: common_pb2.ServiceLevel) -> None:
    """Targets of a text's tokens are over 0. Raises BadInput."""
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


def check_chat(chat: text_pb2.Chat) -> None:
    """Number of messages and their roles. Raises BadInput."""
    if not 1 <= len(chat.messages) <= MOST_MESSAGES:
        raise BadInput("chat.messages", f"must be 1 to {MOST_MESSAGES} messages, not {len(chat.messages)}")
    for index, message in enumerate(chat.messages):
        if not 1 <= len(message.role.encode()) <= MOST_ROLE_BYTES:
            raise BadInput(f"chat.messages[{index}].role", f"must be 1 to {MOST_ROLE_BYTES} bytes")


async def _encode_chat(chat: text_pb2.Chat, loaded: LoadedModel) -> list[int]:
    check_chat(chat)
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


def _resumed(request: text_pb2.GenerateRequest, loaded: LoadedModel, max_tokens: int) -> tuple[int, ...]:
    if not request.HasField("resume"):
        return ()
    resume = request.resume
    if resume.grammar_state:
        raise BadInput("resume.grammar_state", "must be empty: the position is found anew from resume.token_ids")
    if resume.sampler_position != len(resume.token_ids):
        raise BadInput("resume.sampler_position", f"must be the {len(resume.token_ids)} of resume.token_ids")
    if len(resume.token_ids) > max_tokens:
        raise BadInput("resume.token_ids", f"must be at most max_tokens, which is {max_tokens}")
    return _checked_ids("resume.token_ids", resume.token_ids, loaded) if resume.token_ids else ()
