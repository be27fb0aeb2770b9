"""Reads how tokens are to be drawn from a request: each field, and fields that contradict each other."""

import secrets
from dataclasses import dataclass

from headway.errors import BadInput
from headway.v1 import text_pb2
from services.text_worker.sampling import MAX_TOP_K, SEED_LIMIT, Sampling
from services.text_worker.structure import Structure

MOST_ANSWERS = 16
MOST_STOPS, MOST_STOP_BYTES = 16, 256
MOST_STOP_IDS = 64


@dataclass(frozen=True, slots=True)
class Stops:
    """Where an answer ends beside the model's own end."""

    strings: tuple[str, ...]
    token_ids: frozenset[int]


def read_sampling(request: text_pb2.GenerateRequest, default: Sampling, vocab: int) -> Sampling:
    """The request's settings over the checkpoint's. Raises BadInput naming the field and the limit."""
    given = request.sampling
    if given.HasField("top_k") and given.top_k > MAX_TOP_K:
        raise BadInput("sampling.top_k", f"must be 0 to {MAX_TOP_K}, not {given.top_k}")
    for index, item in enumerate(given.logit_bias):
        if item.token_id >= vocab:
            raise BadInput(f"sampling.logit_bias[{index}].token_id", f"must be below {vocab}, not {item.token_id}")
    try:
        sampling = _over(default, given, _seed(request))
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise BadInput(f"sampling.{field}", problem) from error
    _refuse_contradictions(given)
    return sampling


def read_count(request: text_pb2.GenerateRequest, sampling: Sampling) -> int:
    """How many answers. Raises BadInput."""
    count = request.n if request.HasField("n") else 1
    if not 1 <= count <= MOST_ANSWERS:
        raise BadInput("n", f"must be 1 to {MOST_ANSWERS}, not {count}")
    if count > 1 and (sampling.greedy or sampling.top_k == 1):
        raise BadInput("n", f"must be 1 where sampling is greedy: all {count} answers would be the same")
    if count > 1 and request.HasField("resume"):
        raise BadInput("n", "must be 1 with resume, which goes on with one answer")
    return count


def read_stops(request: text_pb2.GenerateRequest, vocab: int) -> Stops:
    """Stop strings and token ids. Raises BadInput."""
    if len(request.stop) > MOST_STOPS:
        raise BadInput("stop", f"must be at most {MOST_STOPS} strings, not {len(request.stop)}")
    for index, stop in enumerate(request.stop):
        if not 1 <= len(stop.encode()) <= MOST_STOP_BYTES:
            raise BadInput(f"stop[{index}]", f"must be 1 to {MOST_STOP_BYTES} bytes, not {len(stop.encode())}")
    if len(request.stop_token_ids) > MOST_STOP_IDS:
        raise BadInput("stop_token_ids", f"must be at most {MOST_STOP_IDS} ids, not {len(request.stop_token_ids)}")
    ids = frozenset(request.stop_token_ids)
    if ids and max(ids) >= vocab:
        raise BadInput("stop_token_ids", f"ids must be below {vocab}, not {max(ids)}")
    return Stops(tuple(request.stop), ids)


def read_structure(request: text_pb2.GenerateRequest) -> Structure | None:
    """What the answer must look like. Raises BadInput."""
    if not request.HasField("structure"):
        return None
    kind = request.structure.WhichOneof("kind")
    if kind is None:
        raise BadInput("structure", "one of json_schema, regex and grammar must be set")
    return Structure(kind, getattr(request.structure, kind))


def _over(default: Sampling, given: text_pb2.Sampling, seed: int) -> Sampling:
    return Sampling(
        temperature=given.temperature if given.HasField("temperature") else default.temperature,
        top_k=(given.top_k or None) if given.HasField("top_k") else default.top_k,
        top_p=given.top_p if given.HasField("top_p") else default.top_p,
        min_p=given.min_p if given.HasField("min_p") else default.min_p,
        repetition_penalty=(
            given.repetition_penalty if given.HasField("repetition_penalty") else default.repetition_penalty
        ),
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=tuple((item.token_id, item.bias) for item in given.logit_bias),
        logprobs=given.logprobs if given.HasField("logprobs") else None,
        seed=seed,
    )


def _refuse_contradictions(given: text_pb2.Sampling) -> None:
    """What the request itself sets must be able to mean something."""
    if not given.HasField("temperature") or given.temperature > 0:
        return
    narrowed = {
        "top_k": given.top_k > 1,
        "top_p": given.HasField("top_p") and given.top_p < 1,
        "min_p": given.min_p > 0,
    }
    for field, contradicts in narrowed.items():
        if contradicts:
            raise BadInput(f"sampling.{field}", "means nothing with sampling.temperature 0, which is greedy")


def _seed(request: text_pb2.GenerateRequest) -> int:
    """The seed to draw with; one that nobody gave is drawn now and told in the summary."""
    seed = request.sampling.seed if request.sampling.HasField("seed") else None
    if not request.HasField("resume"):
        return secrets.randbelow(SEED_LIMIT) if seed is None else seed
    if seed not in (None, request.resume.seed):
        raise BadInput("resume.seed", f"is {request.resume.seed}, but sampling.seed is {seed}")
    return request.resume.seed
