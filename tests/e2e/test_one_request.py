"""One request through the whole mesh: by a client made from reflection alone, on its budget, and as one trace."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conftest import Collector, Mesh
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from headway.client import Headway
from headway.errors import HeadwayError
from headway.requests import images_request, render_request, text_request

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.address) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, request: dict[str, Any], timeout_s: float, **metadata: str) -> list[Any]:
    """Calls a method that this client knows from reflection alone; the messages of the answer."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, _, name = method.rpartition("/")
    described = pool.FindServiceByName(service).FindMethodByName(name)
    asked, answered = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
    make = channel.unary_stream if described.server_streaming else channel.unary_unary
    stub = make(f"/{method}", request_serializer=asked.SerializeToString, response_deserializer=answered.FromString)
    answer = stub(asked(**request), timeout=timeout_s, metadata=tuple(metadata.items()))
    return list(answer) if described.server_streaming else [answer]


def test_a_client_made_from_reflection_streams_text(channel: grpc.Channel) -> None:
    request = {"text": "The iterator protocol", "max_tokens": 24}
    first, *chunks, last = call(channel, "headway.v1.TextGeneration/Generate", request, 15)
    assert first.WhichOneof("part") == "plan"
    assert first.plan.rung.label == "100%"
    assert first.plan.predicted_p50_ms > 0
    assert "".join(message.chunk.text for message in chunks).strip()
    offsets = [message.chunk.offset for message in chunks]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert last.summary.served.slack_ms > 0
    assert last.summary.usage.completion_tokens >= 1


def test_a_client_made_from_reflection_streams_64_images(channel: grpc.Channel) -> None:
    request = {"labels": [7], "count": 64, "seed": 5}
    first, *batches, last = call(channel, "headway.v1.ImageGeneration/Generate", request, 15)
    images = [image for message in batches for image in message.batch.images]
    assert first.plan.rung.label == "4"
    assert sorted(image.index for image in images) == list(range(64))
    assert all(image.data.startswith(b"\x89PNG") and image.label == 7 and image.nfe == 4 for image in images)
    assert (last.summary.served.rung.nfe, last.summary.served.steps_executed) == (4, 4)
    assert last.summary.served.slack_ms > 0


def test_a_client_made_from_reflection_gets_a_frame(channel: grpc.Channel) -> None:
    (scenes,) = call(channel, "headway.v1.SplatRendering/ListScenes", {}, 15)
    request = {"scene": scenes.scenes[0].name, "options": {"width": 160, "height": 120}}
    (answer,) = call(channel, "headway.v1.SplatRendering/Render", request, 15)
    assert answer.frame.data.startswith(b"\x89PNG")
    assert (answer.frame.width, answer.frame.height) == (160, 120)
    assert answer.plan.rung.label == answer.served.rung.label == scenes.scenes[0].ladder.rungs[0].label
    assert answer.served.slack_ms > 0


@pytest.mark.parametrize("deadline_s", [9.0, 2.341, 0.9])
def test_the_worker_gets_the_clients_deadline_less_what_the_hops_kept(mesh: Mesh, deadline_s: float) -> None:
    quantum_ms = 100 if deadline_s >= 10 else 10 if deadline_s >= 1 else 1
    with Headway(mesh.address) as client:
        (*_, last) = client.images(images_request(1, count=1), deadline_s=deadline_s)
    served = last.summary.served
    kept_ms = 2 * 5.0  # the router's reserve and the worker's
    assert served.budget_ms <= deadline_s * 1000 - kept_ms + quantum_ms
    assert served.budget_ms > deadline_s * 1000 - kept_ms - 2 * quantum_ms - 150  # what a busy machine used on the way


def test_a_kept_frame_says_that_it_is(mesh: Mesh) -> None:
    with Headway(mesh.address) as client:
        request = render_request(client.scenes().scenes[0].name, width=101, height=77)
        made = client.render(request, deadline_s=15)
        for _ in range(100):  # the first answer is kept in the background
            kept = client.render(request, deadline_s=15)
            if kept.served.stages[0].stage == "cache":
                break
    assert kept.served.stages[0].stage == "cache"
    assert kept.frame == made.frame
    assert kept.served.steps_executed == 0


def test_one_trace_shows_router_worker_stages_and_cache(
    mesh: Mesh, channel: grpc.Channel, collector: tuple[Collector, str]
) -> None:
    request = {"labels": [3], "count": 2, "seed": 77}
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    call(channel, "headway.v1.ImageGeneration/Generate", request, 15, traceparent=traceparent)
    wanted = {
        ("headway-router", "headway.router.call"),
        ("headway-router", "headway.router.pick"),
        ("headway-router", "headway.router.forward"),
        ("headway-router", "headway.cache.get"),
        ("headway-prefix-cache", "headway.cache.call"),
        ("headway-dit-worker", "headway.worker.call"),
        ("headway-dit-worker", "headway.worker.queue"),
        ("headway-dit-worker", "headway.worker.step"),
        ("headway-dit-worker", "headway.worker.encode"),
    }
    spans = collector[0].wait_for(bytes.fromhex(TRACE_ID), lambda seen: wanted <= seen)
    assert wanted <= {(service, span.name) for service, span in spans}
    ids = {span.span_id for _, span in spans} | {bytes.fromhex("b7ad6b7169203331")}
    assert all(span.parent_span_id in ids for _, span in spans), "every span hangs on one of the trace"


BAD_IMAGES = [
    (images_request(10), "labels"),
    (images_request([]), "labels"),
    (images_request(1, count=129), "count"),
    (images_request(1, count=0), "count"),
]
BAD_TEXTS = [
    (text_request(""), "text"),
    (text_request("a " * 5000), "text"),
    (text_request("a", max_tokens=0), "max_tokens"),
    (text_request("a", temperature=-1.0), "temperature"),
    (text_request("a", top_p=float("nan")), "top_p"),
]


@pytest.mark.parametrize(("request_", "field"), BAD_TEXTS)
def test_bad_text_requests_name_their_field(mesh: Mesh, request_: Any, field: str) -> None:
    with Headway(mesh.address) as client, pytest.raises(HeadwayError) as refused:
        list(client.text(request_, deadline_s=10))
    assert refused.value.reason_name == "BAD_INPUT"
    assert field in refused.value.message


@pytest.mark.parametrize(("request_", "field"), BAD_IMAGES)
def test_bad_image_requests_name_their_field(mesh: Mesh, request_: Any, field: str) -> None:
    with Headway(mesh.address) as client, pytest.raises(HeadwayError) as refused:
        list(client.images(request_, deadline_s=10))
    assert refused.value.reason_name == "BAD_INPUT"
    assert field in refused.value.message


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"scene": "../../etc/passwd"}, "NOT_FOUND", "scene"),
        ({"width": 0}, "BAD_INPUT", "width"),
        ({"width": 4096, "height": 4096}, "BAD_INPUT", "width"),
        ({"height": 100_000}, "BAD_INPUT", "height"),
    ],
)
def test_bad_frame_requests_name_their_field(mesh: Mesh, change: dict[str, Any], reason: str, field: str) -> None:
    with Headway(mesh.address) as client:
        given = {"scene": client.scenes().scenes[0].name, "width": 64, "height": 64, **change}
        with pytest.raises(HeadwayError) as refused:
            client.render(render_request(given.pop("scene"), **given), deadline_s=10)
    assert refused.value.reason_name == reason
    assert field in refused.value.message


def test_a_hopeless_deadline_says_what_would_do(mesh: Mesh) -> None:
    with Headway(mesh.address) as client, pytest.raises(HeadwayError) as refused:
        list(client.text(text_request("The"), deadline_s=0.03))
    assert refused.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.value.reason_name in {"BUDGET_TOO_SMALL", "EXPIRED"}
