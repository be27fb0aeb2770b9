"""A stored answer, and how it is given again: with the figures of the call that gets it now."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from headway.deadline import Budget
from headway.v1 import common_pb2
from services.router.methods import Method
from services.router.placement import Placement


def result_key(method: Method, request: Any, asset_hash: str, salt: str) -> bytes:
    """32 bytes that name the answer to `request`: equal only for the same method, request, asset and tenant.

    The request counts without its service level, which bends the quality alone, and without the asset's name, whose
    content the hash names. Fields that this version does not know count.
    """
    canonical: Any = type(request)()
    canonical.CopyFrom(request)
    for field in ("service_level", "model", "scene"):
        if field in canonical.DESCRIPTOR.fields_by_name:
            canonical.ClearField(field)
    digest = hashlib.sha256(b"headway result 1")
    parts = (method.path.encode(), asset_hash.encode(), salt.encode(), canonical.SerializeToString(deterministic=True))
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, parsed."""

    messages: tuple[Message, ...]
    served: common_pb2.Served
    """The last message's."""

    def serves(self, wanted: Placement) -> bool:
        """Whether it is of the expected asset, of an allowed rung, and as good as what is expected."""
        served = self.served
        return served.asset_hash == wanted.asset.hash and will_do(served.rung.label, served.quality, wanted)


def will_do(label: str, quality: float, wanted: Placement) -> bool:
    """Whether a rung of this quality is allowed, and as good as the one that is expected."""
    return quality >= wanted.rung.quality and any(rung.label == label for rung in wanted.allowed)


def read_answer(method: Method, messages: Sequence[bytes]) -> Answer | None:
    """None when the bytes are no whole answer: they do not parse, it was cut, or what was served is not at the end."""
    try:
        parsed = tuple(method.response.FromString(message) for message in messages)
    except DecodeError:
        return None
    served = method.served(parsed[-1]) if parsed else None
    return None if served is None or not method.whole(parsed[-1]) else Answer(parsed, served)


def replay(method: Method, answer: Answer, budget: Budget, now_s: float) -> list[bytes]:
    """The answer's messages for a call with `budget`: plan and `Served` say that they are cached and what time is left.

    Mutates the answer. No worker was asked and no step was run now; worker, rung and quality are those of the work.
    """
    elapsed_ms = (now_s - budget.arrival_s) * 1000
    for message in answer.messages:
        plan = method.plan(message)
        if plan is not None:
            plan.reason, plan.budget_ms = common_pb2.RUNG_REASON_CACHED, budget.total_s * 1000
            plan.predicted_p50_ms = plan.predicted_p99_ms = elapsed_ms
    served = answer.served
    served.reason, served.attempts, served.steps_executed = common_pb2.RUNG_REASON_CACHED, 0, 0
    served.budget_ms, served.slack_ms = budget.total_s * 1000, budget.remaining_s(now_s) * 1000
    del served.stages[:]
    served.stages.add(stage="cache", predicted_ms=elapsed_ms, actual_ms=elapsed_ms)
    return [message.SerializeToString() for message in answer.messages]
