"""Streams text within a deadline, by Headway's own client (`pip install headway`).

python client.py [HOST:PORT] [DEADLINE_S] [PROMPT]
"""

import sys

from headway.client import Headway
from headway.errors import HeadwayError
from headway.requests import service_level, text_request


def main(address: str = "127.0.0.1:50050", deadline_s: str = "5", prompt: str = "The iterator protocol") -> None:
    # No floor: under load the answer gets shorter before it is refused. See service_level(at_least="tokens=24").
    request = text_request(prompt, max_tokens=24, level=service_level(priority="normal"))
    with Headway(address) as mesh:
        for message in mesh.text(request, deadline_s=float(deadline_s)):
            if message.HasField("plan"):
                plan = message.plan
                print(f"plan: rung {plan.rung.label}, {plan.predicted_p50_ms:.0f} of {plan.budget_ms:.0f} ms")
            elif message.HasField("chunk"):
                print(message.chunk.text, end="", flush=True)
            elif message.HasField("summary"):
                served = message.summary.served
                print(
                    f"\nserved: rung {served.rung.label}, quality {served.quality:.2f}, slack {served.slack_ms:.0f} ms"
                )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except HeadwayError as error:
        advice = f"; come back in {error.retry_after_s:g} s" if error.retry_after_s is not None else ""
        if "least_budget_ms" in error.metadata:
            advice = f"; give it at least {error.metadata['least_budget_ms']} ms"
        sys.exit(f"refused: {error.status.name} {error.reason_name}: {error.message}{advice}")
