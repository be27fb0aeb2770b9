"""Proves compose.yaml on a real engine: `make compose-proof`.

Builds the images, starts the mesh with Envoy before it, looks at what the containers may do, sends requests of all
three kinds through both routers and Envoy, scales text to two, kills each of the two while a text streams, and takes
everything down again. Every step is checked; what was seen is written to docs/compose-proof.md. Takes about ten
minutes, most of them for pip inside the images.

Where torch should come from an index of its own (or else pip brings the CUDA build): PIP_EXTRA_INDEX_URL, or
PIP_FIND_LINKS with a folder of wheels, which is served to the builds on loopback.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import NoEngine, engine, ensure

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "compose-proof.md"
BIN = Path(sys.executable).parent
TARGETS = ("router", "prefix-cache", "device", "text-worker", "dit-worker", "splat-worker")
OUTSIDE = ("python:3.11-slim", "valkey/valkey:9", "envoyproxy/envoy:distroless-v1.40.0")
PROJECT = "headway-proof"
"""Not the file's own name: a mesh that runs under that is nobody's to take down."""
FRONT_SERVICES = {"router", "router-2", "envoy"}
ROUTERS, FRONT = ("127.0.0.1:50050", "127.0.0.1:50051"), "127.0.0.1:8080"
COMPOSE = (
    str(BIN / "docker-compose"),
    "--file",
    str(ROOT / "compose.yaml"),
    "--profile",
    "envoy",
    "--project-name",
    PROJECT,
)
MOST_KILLS = 8
WHEELS_PORT = 50990
"""Always the same: an address that changes would have everything built anew."""
LONG = 700
"""Characters of a text that is still under way when a worker is killed."""
HEADING = """# compose.yaml on a real engine

Written by `make compose-proof` ([deploy/proof](../deploy/proof/compose_proof.py)), which stops at the first thing that
is not as it should be.
"""


class Failed(AssertionError):
    """Something was not as it should be."""


class Log:
    """Says what is seen, and keeps it for the page."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def step(self, title: str) -> None:
        self._add("", f"## {title}", "")

    def say(self, line: str) -> None:
        self._add(f"- {line}")

    def shown(self, command: str, output: str) -> None:
        self._add("", "```console", f"$ {command}", *output.rstrip().splitlines(), "```", "")

    def save(self) -> None:
        LOG.write_text(HEADING + "\n".join(line.rstrip() for line in self._lines) + "\n")

    def _add(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self._lines += lines


def run(*command: str, allowed: Sequence[int] = (0,), env: dict[str, str] | None = None) -> str:
    """What a command printed. Raises `Failed` with it when the command leaves otherwise than allowed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})})
    if done.returncode not in allowed:
        raise Failed(f"{' '.join(command)} left with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def told(*command: str) -> str:
    """What a command printed on both streams, as a user sees it. Raises `Failed` as `run` does."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)} left with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def compose(*arguments: str) -> str:
    return run(*COMPOSE, *arguments)


def headway(*arguments: str, address: str = ROUTERS[0], allowed: Sequence[int] = (0,)) -> str:
    return run(str(BIN / "headway"), *arguments, allowed=allowed, env={"HEADWAY_ADDRESS": address, "COLUMNS": "150"})


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without telling of it."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def index() -> Iterator[list[str]]:
    """Build arguments that name where torch comes from."""
    links = os.environ.get("PIP_FIND_LINKS", "")
    if "PIP_EXTRA_INDEX_URL" in os.environ or not Path(links or "/nowhere").is_dir():
        yield ["--build-arg", "PIP_EXTRA_INDEX_URL"]
        return
    with tempfile.TemporaryDirectory() as folder:
        for wheel in Path(links).glob("*.whl"):
            project = Path(folder) / wheel.name.partition("-")[0].lower().replace("_", "-")
            project.mkdir(exist_ok=True)
            (project / wheel.name).symlink_to(wheel)
        handler = functools.partial(QuietHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", WHEELS_PORT), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield ["--build-arg", f"PIP_EXTRA_INDEX_URL=http://127.0.0.1:{WHEELS_PORT}/"]
            server.shutdown()


def build(log: Log, *, own: bool) -> None:
    """Every image; none holds a compiler."""
    log.step("Images")
    for image in OUTSIDE:
        ensure(image, log.say, own=own)
    with index() as arguments:
        for target in TARGETS:
            begun_s = time.monotonic()
            tags = [f"--tag={PROJECT}-{name}" for name in ((target, "router-2") if target == "router" else (target,))]
            run("docker", "build", "--network=host", f"--target={target}", *tags, *arguments, ".", env=builder())
            size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", f"{PROJECT}-{target}"))
            log.say(
                f"headway-{target}: {size / 1e6:.0f} MB, built in {time.monotonic() - begun_s:.0f} s, no compiler in it"
            )
            looked = ("--entrypoint=sh", f"{PROJECT}-{target}", "-c", "command -v cc gcc g++ clang || true")
            check(not run("docker", "run", "--rm", *looked).strip(), f"{target} holds a compiler")


def builder() -> dict[str, str]:
    """The builder that there is: BuildKit comes as a plugin, which not every client has."""
    found = subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode == 0
    return {} if found else {"DOCKER_BUILDKIT": "0"}


def start(log: Log) -> None:
    log.step("Up")
    begun_s = time.monotonic()
    compose("up", "--detach", "--wait", "--no-build")
    log.say(f"every container is healthy after {time.monotonic() - begun_s:.0f} s")
    log.shown("docker compose ps", compose("ps", "--format", "table {{.Service}}\t{{.Status}}\t{{.Ports}}"))
    status(log)


def status(log: Log) -> None:
    log.shown("headway status", headway("status", allowed=(0, 4)))


def containers() -> list[dict[str, Any]]:
    """What the engine says of the mesh's containers."""
    found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *compose("ps", "--quiet").split()))
    return found


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def networks(container: dict[str, Any]) -> list[str]:
    return list(container["NetworkSettings"]["Networks"])


def confine(log: Log) -> None:
    """Read-only, unprivileged, limited, and only the front published: as the engine sees it, not as the file says."""
    log.step("What the containers may do")
    published = set()
    for each in containers():
        name, host, config = service_of(each), each["HostConfig"], each["Config"]
        check(host["ReadonlyRootfs"] is True, f"{name} may write to its root")
        check(host["CapDrop"] == ["ALL"] and not host["Privileged"], f"{name} holds capabilities")
        check("no-new-privileges:true" in host["SecurityOpt"], f"{name} may gain privileges")
        check(config["User"].split(":")[0] not in ("", "0", "root"), f"{name} runs as root")
        check(host["Memory"] > 0 and host["NanoCpus"] > 0 and host["PidsLimit"] > 0, f"{name} is not limited")
        if any(bound for bound in (host["PortBindings"] or {}).values()):
            published.add(service_of(each))
    log.say(
        "every container: read-only root, no capabilities, no new privileges, not root; memory, CPU, processes limited"
    )
    check(published == FRONT_SERVICES, f"published: {published}")
    log.say("ports are published by router, router-2 and envoy alone, on loopback")
    touched = "touch /app/mark 2>&1 || true"
    seen = compose("exec", "-T", "text-worker", "sh", "-c", touched)
    check("Read-only" in seen, "a worker may write to its root")
    log.shown(f"docker compose exec text-worker sh -c '{touched}'", seen)
    behind = {name for each in containers() for name in networks(each) if service_of(each) not in FRONT_SERVICES}
    internal = run("docker", "network", "inspect", "--format", "{{.Internal}}", *behind).split()
    check(set(internal) == {"true"}, f"not internal: {behind}")
    log.say("all others are on an internal network alone: no way out of it")


def serve(log: Log) -> None:
    """All three kinds, through both routers and through Envoy."""
    log.step("Requests through the front")
    with tempfile.TemporaryDirectory() as folder:
        asked: list[tuple[str, ...]] = [
            ("text", "The iterator protocol", "--max-tokens", "24", "--deadline", "5s"),
            ("image", "--label", "7", "--n", "16", "--deadline", "5s", "-o", folder),
            ("render", "still-life", "-o", f"{folder}/frame.png", "--deadline", "5s"),
        ]
        for address in (*ROUTERS, FRONT):
            for request in asked:
                said = told(str(BIN / "headway"), *request, "--address", address)
                words = " ".join("OUT" if word.startswith(folder) else word for word in request)
                log.shown(f"headway {words} --address {address}", said.replace(folder, "OUT"))
        check((Path(folder) / "frame.png").stat().st_size > 10_000, "no frame came")
    refused = headway("text", "The iterator protocol", "--deadline", "2ms", allowed=(3,))
    log.say(f"a deadline of 2 ms is refused{': ' + refused.strip() if refused.strip() else ', exit code 3'}")


def scale(log: Log) -> None:
    """A second text worker is found by both routers; one of the two is killed, and texts go on."""
    log.step("Text scaled to two, one of them killed under a stream")
    compose("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "text-worker=2")
    await_text_workers(2)
    log.say("the routers found the second text worker by its name in DNS")
    seed, whole = long_text()
    for turn in range(MOST_KILLS):
        # One twice: routers take a worker that has just come back for the quickest.
        victim = compose("ps", "--quiet", "text-worker").split()[turn // 2 % 2]
        forget()
        stream = subprocess.Popen(
            [BIN / "headway", *asking(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert stream.stdout is not None and stream.stderr is not None
        begun = stream.stdout.read(8)
        run("docker", "kill", "--signal=KILL", victim)
        come, notes = begun + stream.stdout.read(), stream.stderr.read().decode()
        check(stream.wait() == 0, f"the stream left with {stream.returncode}: {notes}")
        check(come.decode() == whole, f"the text is another one after the kill: {come.decode()!r}, not {whole!r}")
        went_on = ", attempt 2" in notes
        what = "went on at the other one, none lost and none twice" if went_on else "came from the other one anyway"
        log.say(f"{short(victim)} was killed after {len(begun)} of {len(come)} bytes of a text: it {what}")
        await_text_workers(1)
        compose("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "text-worker=2")
        await_text_workers(2)
        log.say("started again, it is in again")
        if went_on:
            break
    check(went_on, f"none of {MOST_KILLS} kills met the worker that was writing")
    status(log)


def asking(seed: int) -> tuple[str, ...]:
    return ("text", "The iterator protocol", "--max-tokens", "400", "--seed", str(seed), "--deadline", "20s")


def long_text() -> tuple[int, str]:
    """A seed whose text does not end soon, and the text."""
    for seed in range(1, 40):
        if len(whole := headway(*asking(seed))) > LONG:
            return seed, whole
    raise Failed("the model writes short texts only")


def forget() -> None:
    """Empties Redis: a text that is kept there would come from there."""
    check("OK" in compose("exec", "-T", "redis", "valkey-cli", "flushall"), "Redis was not emptied")


def short(container: str) -> str:
    return run("docker", "inspect", "--format", "{{.Name}}", container).strip().strip("/")


def await_text_workers(count: int) -> None:
    """Both routers see `count` text workers that serve."""
    until = time.monotonic() + 60
    for address in ROUTERS:
        while (seen := headway("status", address=address, allowed=(0, 4)).count(" text ")) != count:
            check(time.monotonic() < until, f"{address} sees {seen} text workers, not {count}")
            time.sleep(0.5)


def refuse(log: Log) -> None:
    """An override that takes away what others need is refused by name, before anything is touched."""
    log.step("An override that removes Redis")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write("services:\n  redis: !reset null\n")
        file.flush()
        done = subprocess.run([*COMPOSE, "--file", file.name, "config"], capture_output=True, text=True, cwd=ROOT)
    said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    check(done.returncode != 0 and "redis" in said, f"it was taken: {said}")
    log.shown("docker compose -f compose.yaml -f without-redis.yaml config", said)


def end(log: Log) -> None:
    log.step("Down")
    begun_s = time.monotonic()
    compose("down", "--volumes", "--timeout", "40")
    check(not compose("ps", "--all", "--quiet").strip(), "containers are left")
    log.say(f"nothing is left after {time.monotonic() - begun_s:.0f} s")


def main() -> int:
    if not shutil.which("docker"):
        print("docker is not on PATH", file=sys.stderr)
        return 2
    log = Log()
    try:
        with engine(log.say) as own:
            refuse(log)
            build(log, own=own)
            try:
                start(log)
                confine(log)
                serve(log)
                scale(log)
            finally:
                end(log)
    except (Failed, NoEngine) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    log.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
