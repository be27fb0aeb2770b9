"""Locust users of a mesh: a text, an image and a frame user, over gRPC, whose deadlines are their budgets.

    locust -f benchmarks/locust/locustfile.py --host 127.0.0.1:50050 --headless -u 8 -t 1m

README.md beside this file says what the figures mean.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from locust import User, between, events, task  # before gRPC: it makes threads and sockets gevent's
from locust.runners import WorkerRunner

# isort: split
import grpc.experimental.gevent

from headway.channels import read_credentials
from headway.client import Headway
from headway.errors import HeadwayError
from headway.requests import images_request, render_request, text_request

grpc.experimental.gevent.init_gevent()
WIDTH = 256


class NotServed(Exception):
    """A request that ended without an answer; says the reason alone, so that Locust counts equal ones together."""


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--deadlines-s", default="0.5,1,2", help="each request draws one of these, comma-separated")
    parser.add_argument("--api-key-file", default="", help="file with the API key to show")
    parser.add_argument("--ca-file", default="", help="authority (PEM) of the mesh's certificate; turns TLS on")


@events.init.add_listener
def _tell(environment: Any, **_: Any) -> None:
    """Adds up what was served, over all of Locust's processes, and prints it at the end."""
    told = environment.told = Counter()

    def to_master(client_id: str, data: dict[str, Any]) -> None:
        data["headway"] = dict(told)
        told.clear()

    def of_worker(client_id: str, data: dict[str, Any]) -> None:
        told.update(data.get("headway", {}))

    def at_the_end(**_: Any) -> None:
        if not isinstance(environment.runner, WorkerRunner):
            print("\n".join(summary(told)))

    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(to_master)
    environment.events.worker_report.add_listener(of_worker)
    environment.events.quitting.add_listener(at_the_end)


@events.test_start.add_listener
def _connect(environment: Any, **_: Any) -> None:
    given = environment.parsed_options
    ca, key = (Path(name) if name else None for name in (given.ca_file, given.api_key_file))
    environment.mesh = Headway(environment.host, read_credentials(ca=ca, api_key=key))
    environment.deadlines_s = [float(part) for part in given.deadlines_s.split(",")]


@events.test_stop.add_listener
def _disconnect(environment: Any, **_: Any) -> None:
    environment.mesh.close()


def summary(told: Mapping[str, float]) -> Iterator[str]:
    """A line for each kind: its rungs by share, mean quality, answers after the deadline."""
    for kind in ("text", "image", "splat"):
        answers = told.get(f"{kind} answers", 0)
        if answers:
            rungs = {
                name.removeprefix(f"{kind} rung "): n for name, n in told.items() if name.startswith(f"{kind} rung ")
            }
            shares = ", ".join(
                f"{label} {n / answers:.0%}" for label, n in sorted(rungs.items(), key=lambda rung: -rung[1])
            )
            quality, late = told[f"{kind} quality"] / answers, told[f"{kind} late"]
            yield f"{kind}: {answers:.0f} answers; rungs {shares}; mean quality {quality:.2f}; late {late:.0f}"


class MeshUser(User):
    """Asks, reads the whole answer, waits a little, asks again."""

    abstract = True
    wait_time = between(0.05, 0.5)
    kind = ""

    def messages(self, mesh: Headway, deadline_s: float) -> Iterator[Any]:
        """One request's messages; the last one says what was served."""
        raise NotImplementedError

    @task
    def ask(self) -> None:
        environment = self.environment
        deadline_s, begun_s = random.choice(environment.deadlines_s), time.perf_counter()
        message, size, failure = None, 0, None
        try:
            for message in self.messages(environment.mesh, deadline_s):
                size += message.ByteSize()
        except HeadwayError as error:
            failure = NotServed(error.reason_name)
        taken_ms = (time.perf_counter() - begun_s) * 1000
        if failure is None:
            self._count(message.served if self.kind == "splat" else message.summary.served)
        environment.events.request.fire(
            request_type="grpc", name=self.kind, response_time=taken_ms, response_length=size, exception=failure
        )

    def _count(self, served: Any) -> None:
        told = self.environment.told
        told[f"{self.kind} answers"] += 1
        told[f"{self.kind} rung {served.rung.label}"] += 1
        told[f"{self.kind} quality"] += served.quality
        told[f"{self.kind} late"] += served.slack_ms < 0


class TextUser(MeshUser):
    """Up to 64 tokens of an answer."""

    kind = "text"

    def messages(self, mesh: Headway, deadline_s: float) -> Iterator[Any]:
        request = text_request([("user", "Explain exceptions in Python.")], max_tokens=64, seed=random.getrandbits(31))
        return mesh.text(request, deadline_s=deadline_s)


class ImageUser(MeshUser):
    """Sixteen images of one label."""

    kind = "image"

    def messages(self, mesh: Headway, deadline_s: float) -> Iterator[Any]:
        request = images_request(random.randrange(10), count=16, seed=random.getrandbits(31))
        return mesh.images(request, deadline_s=deadline_s)


class SplatUser(MeshUser):
    """A frame from the first scene's own view, of a width that no kept frame has."""

    kind = "splat"

    def messages(self, mesh: Headway, deadline_s: float) -> Iterator[Any]:
        width = WIDTH + random.randrange(256)
        yield mesh.render(render_request("", width=width, height=WIDTH, format="jpeg"), deadline_s=deadline_s)
