"""Streams text within a deadline, by nothing but grpcio, grpcio-status and stubs made from protos/.

python plain_stubs.py [HOST:PORT] [DEADLINE_S] [PROMPT]

Here the stubs are those that come with Headway; your own are made in the same way:
python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. protos/headway/v1/{common,text}.proto
"""

import sys
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headway.v1 import text_pb2, text_pb2_grpc


def main(address: str = "127.0.0.1:50050", deadline_s: str = "5", prompt: str = "The iterator protocol") -> None:
    request = text_pb2.GenerateRequest(text=prompt, max_tokens=24)
    with grpc.insecure_channel(address) as channel:
        # The timeout is the budget: gRPC carries it, and every hop passes on what is left.
        for message in text_pb2_grpc.TextGenerationStub(channel).Generate(request, timeout=float(deadline_s)):
            show(message)


def show(message: text_pb2.GenerateResponse) -> None:
    match message.WhichOneof("part"):
        case "plan":
            plan = message.plan
            print(f"plan: rung {plan.rung.label}, {plan.predicted_p50_ms:.0f} of {plan.budget_ms:.0f} ms")
        case "chunk":
            print(message.chunk.text, end="", flush=True)
        case "summary":
            served = message.summary.served
            print(f"\nserved: rung {served.rung.label}, quality {served.quality:.2f}, slack {served.slack_ms:.0f} ms")


def refusal(error: Any) -> str:
    """Status, reason and advice. An error of another hop may carry no details."""
    reason, advice = "", ""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
            if "least_budget_ms" in info.metadata:
                advice = f"; give it at least {info.metadata['least_budget_ms']} ms"
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            advice = f"; come back in {retry.retry_delay.ToMilliseconds()} ms"
    return f"refused: {error.code().name} {reason}: {error.details()}{advice}"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except grpc.RpcError as error:
        sys.exit(refusal(error))
