"""The workers' methods that the router passes on: how to read what it must know of each request and answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from headway.continuing import Again, Continuation, Frames, Images, Refining, Text
from headway.deadline import Budget
from headway.errors import BadInput
from headway.prefix import TOKEN_BYTES
from headway.prompts import MARKS, MOST_PICKED_BYTES, MOST_PROMPT_BYTES, TOKENS_MARK, canonical_prompt
from headway.quality import Rung
from headway.v1 import common_pb2, image_pb2, router_pb2, splat_pb2, text_pb2
from services.router.placement import FRAME_PIXELS, Ask

_BYTES_PER_TOKEN = 3
_DEFAULT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc of a worker's service. `ask`, `plan` and `served` read messages; None where there is no such part."""

    service: str
    name: str
    kind: common_pb2.Kind
    request: type[Message]
    response: type[Message]
    streams: bool
    ask: Callable[[Any, Budget], Ask]
    plan: Callable[[Any], common_pb2.Plan | None]
    served: Callable[[Any], common_pb2.Served | None]
    reproducible: Callable[[Any], bool]
    """Whether the same request gives the same answer, so that it may be cached."""
    continuation: Callable[[bytes, Any], Continuation]
    """Of the request, as bytes and parsed: how its answer goes on when a worker is lost."""
    whole: Callable[[Any], bool]
    """Whether an answer that ends with this message may be given to others: it was not cut for one's deadline."""

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/headway.v1.{self.service}/{self.name}"

    @property
    def uses_device(self) -> bool:
        """Whether the worker plans steps for it."""
        return self.plan is not _no_part

    @property
    def repeatable(self) -> bool:
        """Whether it is one message of device work that may be asked of two workers at once."""
        return self.uses_device and not self.streams

    def may_join(self, request: Any, rung: Rung) -> bool:
        """Whether to wait for the whole answer of the same request, or to lead those who do; `rung`: as is expected.

        Not for a text that will be cut, which is no answer for others, nor where a first token is wanted soon.
        """
        if self.whole is _always:
            return True
        return rung.quality >= 1.0 and not request.service_level.HasField("first_token_target")

    def read_request(self, raw: bytes) -> Any:
        """The parsed request. Raises `BadInput`."""
        try:
            return self.request.FromString(raw)
        except DecodeError as error:
            raise BadInput("request", f"is not a {self.request.DESCRIPTOR.full_name}") from error


def _text_ask(request: text_pb2.GenerateRequest, budget: Budget) -> Ask:
    tokens = request.max_tokens if request.HasField("max_tokens") else _DEFAULT_TOKENS
    resumed = len(request.resume.token_ids)
    return _ask(
        common_pb2.KIND_TEXT, "model", request.model, request.service_level, budget,
        tokens=max(1, tokens), prompt_tokens=_prompt_tokens(request) + resumed,
        prompt=canonical_prompt(request, MOST_PROMPT_BYTES),
        bytes_per_token=TOKEN_BYTES if request.WhichOneof("prompt") == "tokens" else _BYTES_PER_TOKEN,
    )  # fmt: skip


def _prompt_tokens(request: text_pb2.GenerateRequest) -> int:
    if request.WhichOneof("prompt") == "tokens":
        return len(request.tokens.ids)
    size = len(request.text) + sum(len(message.content) for message in request.chat.messages)
    return 1 + size // _BYTES_PER_TOKEN


def _tokenize_ask(request: text_pb2.TokenizeRequest, budget: Budget) -> Ask:
    return _ask(common_pb2.KIND_TEXT, "model", request.model, common_pb2.ServiceLevel(), budget)


def _images_ask(request: image_pb2.GenerateImagesRequest, budget: Budget) -> Ask:
    items = request.count if request.HasField("count") else len(request.labels)
    return _ask(common_pb2.KIND_IMAGE, "model", request.model, request.service_level, budget, items=max(1, items))


def _frame_ask(request: splat_pb2.RenderRequest, budget: Budget) -> Ask:
    pixels = max(1, request.options.width) * max(1, request.options.height)
    return _ask(common_pb2.KIND_SPLAT, "scene", request.scene, request.service_level, budget, pixels=pixels)


def _path_ask(request: splat_pb2.RenderPathRequest, budget: Budget) -> Ask:
    frames = 1 + max(0, len(request.cameras) - 1) * (request.frames_between + 1)
    pixels = max(1, request.options.width) * max(1, request.options.height) * frames
    return _ask(common_pb2.KIND_SPLAT, "scene", request.scene, request.service_level, budget, pixels=pixels)


def _ask(
    kind: common_pb2.Kind, field: str, asset: str, level: common_pb2.ServiceLevel, budget: Budget, **sizes: Any
) -> Ask:
    return Ask(kind, field, asset, level, budget.arrival_s, budget.due_s, **sizes)


def read_pick(request: router_pb2.PickRequest, budget: Budget) -> Ask:
    """What a client that asks for workers says of its request; what it leaves out counts as one. Raises `BadInput`."""
    field = "scene" if request.kind == common_pb2.KIND_SPLAT else "model"
    if request.kind not in (common_pb2.KIND_TEXT, common_pb2.KIND_IMAGE, common_pb2.KIND_SPLAT):
        raise BadInput("kind", f"must be text, image or splat, not {request.kind}")
    _check_picked_prompt(request)
    return _ask(
        request.kind, field, request.asset, request.service_level, budget,
        items=max(1, request.items), tokens=max(1, request.steps), prompt_tokens=request.prompt_tokens,
        pixels=request.pixels or FRAME_PIXELS, prompt=request.prompt,
        bytes_per_token=TOKEN_BYTES if request.prompt.startswith(TOKENS_MARK) else _BYTES_PER_TOKEN,
    )  # fmt: skip


def _check_picked_prompt(request: router_pb2.PickRequest) -> None:
    if len(request.prompt) > MOST_PICKED_BYTES:
        raise BadInput("prompt", f"must be at most {MOST_PICKED_BYTES} bytes, not {len(request.prompt)}")
    if request.prompt and request.kind != common_pb2.KIND_TEXT:
        raise BadInput("prompt", "must be empty: only text has one")
    if request.prompt and not request.prompt.startswith(MARKS):
        raise BadInput("prompt", "must begin with T, M or I, and what that marks")


def _plan_part(message: Any) -> common_pb2.Plan | None:
    return message.plan if message.HasField("plan") else None


def _summary_served(message: Any) -> common_pb2.Served | None:
    return message.summary.served if message.HasField("summary") else None


def _own_served(message: Any) -> common_pb2.Served | None:
    return message.served if message.HasField("served") else None


def _no_part(message: Any) -> None:
    return None


def _never(message: Any) -> bool:
    return False


def _always(message: Any) -> bool:
    return True


def _one_way_to_draw(request: text_pb2.GenerateRequest) -> bool:
    """One answer from its beginning, whose tokens are the likeliest, or drawn with a seed that the caller gave."""
    sampling = request.sampling
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    return (greedy or sampling.HasField("seed")) and request.n <= 1 and not request.HasField("resume")


def _ended_by_itself(message: text_pb2.GenerateResponse) -> bool:
    """As long as anybody could want it: a shorter one is below some caller's floor."""
    served = message.summary.served
    return served.quality >= 1.0 and message.summary.finish_reason != text_pb2.FINISH_REASON_DEADLINE


def _has_seed(request: image_pb2.GenerateImagesRequest) -> bool:
    return request.HasField("seed") and not request.previews


GENERATE_TEXT = Method(
    "TextGeneration", "Generate", common_pb2.KIND_TEXT, text_pb2.GenerateRequest, text_pb2.GenerateResponse, True,
    _text_ask, _plan_part, _summary_served, _one_way_to_draw, Text, _ended_by_itself,
)  # fmt: skip
TOKENIZE = Method(
    "TextGeneration", "Tokenize", common_pb2.KIND_TEXT, text_pb2.TokenizeRequest, text_pb2.TokenizeResponse, False,
    _tokenize_ask, _no_part, _no_part, _never, Again, _always,
)  # fmt: skip
GENERATE_IMAGES = Method(
    "ImageGeneration", "Generate", common_pb2.KIND_IMAGE, image_pb2.GenerateImagesRequest,
    image_pb2.GenerateImagesResponse, True, _images_ask, _plan_part, _summary_served, _has_seed, Images, _always,
)  # fmt: skip
RENDER = Method(
    "SplatRendering", "Render", common_pb2.KIND_SPLAT, splat_pb2.RenderRequest, splat_pb2.RenderResponse, False,
    _frame_ask, _plan_part, _own_served, _always, Again, _always,
)  # fmt: skip

RENDER_PROGRESSIVE = Method(
    "SplatRendering", "RenderProgressive", common_pb2.KIND_SPLAT, splat_pb2.RenderRequest,
    splat_pb2.RenderProgressiveResponse, True, _frame_ask, _plan_part, _own_served, _never, Refining, _always,
)  # fmt: skip
RENDER_PATH = Method(
    "SplatRendering", "RenderPath", common_pb2.KIND_SPLAT, splat_pb2.RenderPathRequest, splat_pb2.RenderPathResponse,
    True, _path_ask, _plan_part, _own_served, _never, Frames, _always,
)  # fmt: skip

PASSED_ON = (GENERATE_TEXT, TOKENIZE, GENERATE_IMAGES, RENDER, RENDER_PROGRESSIVE, RENDER_PATH)


@dataclass(frozen=True, slots=True)
class Listing:
    """One rpc that lists what all workers of a kind have, merged by name."""

    service: str
    name: str
    kind: common_pb2.Kind
    response: type[Message]
    field: str
    """The repeated field; its items have a name."""

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/headway.v1.{self.service}/{self.name}"


LISTINGS = (
    Listing("TextGeneration", "ListModels", common_pb2.KIND_TEXT, text_pb2.ListTextModelsResponse, "models"),
    Listing("ImageGeneration", "ListModels", common_pb2.KIND_IMAGE, image_pb2.ListImageModelsResponse, "models"),
    Listing("SplatRendering", "ListScenes", common_pb2.KIND_SPLAT, splat_pb2.ListScenesResponse, "scenes"),
)
