"""The messages of the endpoint picker protocol: what a data plane says, and what it is answered. Pure.

The protocol is the Gateway API inference extension's, proposal 004, over Envoy's external processing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import grpc
from google.protobuf import struct_pb2

from headway.errors import HeadwayError, to_trailers
from headway.tracing import Metadata
from headway.v1 import ext_proc_pb2
from services.router.http_call import to_wire

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"
"""The header, and the key in the namespace `LB`, that say where a request goes."""
SERVED = "x-gateway-destination-endpoint-served"
"""The key in the namespace `LB` that says who answered it."""
LB = "envoy.lb"
SUBSET_HINT = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
_PIECE_BYTES = 62_000
"""Data planes take pieces of a body of up to 64 KiB."""
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

Request = ext_proc_pb2.ProcessingRequest
Response = ext_proc_pb2.ProcessingResponse


def read_headers(headers: ext_proc_pb2.HeaderMap) -> Metadata:
    """The headers as metadata, in their order; binary ones are not decoded."""
    return tuple((header.key, header.value or header.raw_value.decode("latin-1")) for header in headers.headers)


def subset(request: Request) -> frozenset[str] | None:
    """The endpoints that may be picked, as IP:PORT; None where the data plane names none to pick from."""
    value = _told(request, SUBSET_HINT, SUBSET)
    if value is None:
        return None
    if value.WhichOneof("kind") == "list_value":
        listed: Iterable[str] = (item.string_value for item in value.list_value.values)
    else:
        listed = value.string_value.split(",")
    return frozenset(address.strip() for address in listed if address.strip())


def served_by(request: Request) -> str | None:
    """The endpoint that answered, as IP:PORT; None where the data plane does not say."""
    value = _told(request, LB, SERVED)
    return value.string_value if value is not None and value.string_value else None


def _told(request: Request, namespace: str, key: str) -> struct_pb2.Value | None:
    filters: Mapping[str, struct_pb2.Struct] = request.metadata_context.filter_metadata
    if namespace not in filters or key not in filters[namespace].fields:
        return None
    return filters[namespace].fields[key]


def routed(endpoints: Sequence[str], metadata: Metadata, removed: Iterable[str]) -> Response:
    """Sends the request to the first of `endpoints`, as IP:PORT; the others are for data planes that ask again.

    `metadata` takes the place of what it had of these names; headers in `removed` are taken away.
    """
    where = ",".join(endpoints)
    response = Response()
    common = response.request_headers.response
    common.clear_route_cache = True
    common.header_mutation.CopyFrom(_mutation([(DESTINATION, where), *metadata]))
    common.header_mutation.remove_headers.extend(removed)
    response.dynamic_metadata.update({LB: {DESTINATION: where}})
    return response


def refusal(error: HeadwayError) -> Response:
    """The answer to a request that goes nowhere: gRPC's own, with its details and when to come back."""
    answer = ext_proc_pb2.ImmediateResponse(
        body=error.message.encode(),
        details=f"headway_{error.reason_name.lower()}",
        headers=_mutation(to_trailers(error)),
    )
    answer.status.code = _HTTP.get(error.status, 500)
    answer.grpc_status.status = error.status.value[0]
    return Response(immediate_response=answer)


def body_pieces(body: bytes, *, ended: bool) -> Iterator[ext_proc_pb2.BodyResponse]:
    """Lets bytes of a body go on, unchanged; `ended`: it ends with them."""
    for begin in range(0, max(1, len(body)), _PIECE_BYTES):
        last = begin + _PIECE_BYTES >= len(body)
        piece = ext_proc_pb2.BodyResponse()
        streamed = piece.response.body_mutation.streamed_response
        streamed.body, streamed.end_of_stream = body[begin : begin + _PIECE_BYTES], ended and last
        yield piece


def passed_on(request: Request, response_body: ext_proc_pb2.BodySendMode) -> Iterator[Response]:
    """The answers that let a part go on as it is. `response_body`: how the response's body comes."""
    part = request.WhichOneof("request")
    if part == "request_body":
        for piece in body_pieces(request.request_body.body, ended=request.request_body.end_of_stream):
            yield Response(request_body=piece)
    elif part == "response_body" and response_body == ext_proc_pb2.FULL_DUPLEX_STREAMED:
        for piece in body_pieces(request.response_body.body, ended=request.response_body.end_of_stream):
            yield Response(response_body=piece)
    elif part == "response_body":
        yield Response(response_body=ext_proc_pb2.BodyResponse())
    elif part == "response_headers":
        yield Response(response_headers=ext_proc_pb2.HeadersResponse())
    elif part == "request_trailers":
        yield Response(request_trailers=ext_proc_pb2.TrailersResponse())
    elif part == "response_trailers":
        yield Response(response_trailers=ext_proc_pb2.TrailersResponse())


def _mutation(metadata: Iterable[tuple[str, str | bytes]]) -> ext_proc_pb2.HeaderMutation:
    return ext_proc_pb2.HeaderMutation(
        set_headers=[
            ext_proc_pb2.HeaderValueOption(
                header=ext_proc_pb2.HeaderValue(key=name, raw_value=value),
                append_action=ext_proc_pb2.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for name, value in to_wire(metadata)
        ]
    )
