"""The guard's ways for drills: a command that does not outlive its owner, a directory that does not,
a network in which nobody is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from strongroom.errors import StrongroomError
from strongroom.operations.commands import run_command
from strongroom.postgres.embedded import GUARD, EmbeddedServer, find_server

_NETWORK = "cat /proc/self/net/dev"


def below(net: str = "") -> list[str]:
    return [sys.executable, "-I", "-S", GUARD, "command", net]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def may_be_apart(*who: str) -> bool:
    words = (
        ["unshare", "--net"] if os.geteuid() == 0 and not who else ["unshare", "--user", "--net"]
    )
    return subprocess.run([*who, *words, "true"], check=False, stderr=-3).returncode == 0


def interfaces(said: str) -> set[str]:
    return {line.split(":")[0].strip() for line in said.splitlines() if ":" in line}


@pytest.mark.parametrize(
    "who", [(), ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")]
)
def test_a_command_has_a_network_of_its_own(tmp_path: Path, who: tuple[str, ...]) -> None:
    if who and (os.geteuid() != 0 or shutil.which("setpriv") is None):
        pytest.skip("needs root and setpriv, to be somebody else")
    if not may_be_apart(*who):
        pytest.skip("no network namespace may be made here")
    guard = tmp_path / "guard.py"
    if who:  # another user cannot read below somebody's home
        guard = Path("/tmp") / f"sr-guard-{os.getpid()}.py"
    shutil.copy(GUARD, guard)
    guard.chmod(0o644)
    python = "/usr/bin/python3" if who else sys.executable
    if not os.access(python, os.X_OK):
        pytest.skip(f"{python} is not here")
    try:
        process = subprocess.Popen(
            [*who, python, "-I", "-S", str(guard), "command", "apart", "sh", "-c", _NETWORK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.read().decode()
        assert process.wait() == 0
    finally:
        if who:
            guard.unlink()
    assert "lo" in interfaces(said)
    with open("/proc/self/net/dev") as file:
        mine = interfaces(file.read())
    assert interfaces(said) < mine or mine == {"lo"}


def test_the_status_of_a_command_is_the_guards(tmp_path: Path) -> None:
    told: list[str] = []

    def run(*argv: str, **options: Any) -> None:
        run_command(argv, environ=dict(os.environ), below=below(), tell=told.append, **options)

    run("sh", "-c", "pwd; read x || echo nothing", cwd=str(tmp_path))
    assert told == [str(tmp_path), "nothing"]
    with pytest.raises(StrongroomError, match="exit status 3: why"):
        run("sh", "-c", "echo why; exit 3")
    with pytest.raises(StrongroomError, match="exit status 127: /no/such: No such file"):
        run("/no/such")
    with pytest.raises(StrongroomError, match="exit status 137"):
        run("sh", "-c", "kill -9 $$")


@pytest.mark.parametrize("way", ["owner", "end"])
def test_what_a_command_started_ends_with_it_or_with_its_owner(tmp_path: Path, way: str) -> None:
    mark = f"86400.{os.getpid()}{'01'[way == 'end']}"
    wait = "sleep 100" if way == "owner" else "true"
    script = f"setsid sleep {mark} & touch {tmp_path}/begun; {wait}"
    process = subprocess.Popen([*below(), "sh", "-c", script], stdin=subprocess.PIPE)
    assert process.stdin is not None
    until((tmp_path / "begun").exists)
    if way == "owner":
        process.stdin.close()
    assert process.wait(20) == (137 if way == "owner" else 0)
    until(lambda: not any(one.info["cmdline"] == ["sleep", mark]
                          for one in psutil.process_iter(["cmdline"])))  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_a_directory_goes_with_its_owner(tmp_path: Path, keep: bool) -> None:
    folder = tmp_path / "room"
    (folder / "deep").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", GUARD, "sweep", str(folder)], stdin=subprocess.PIPE
    )
    process.communicate(b"k" if keep else b"")
    assert folder.exists() == keep


def test_a_server_has_a_network_of_its_own_and_is_reached_all_the_same() -> None:
    if not may_be_apart():
        pytest.skip("no network namespace may be made here")
    server = EmbeddedServer(find_server(), durable=False)
    server.apart = True
    with server, server.connect() as connection:
        assert server.is_apart
        assert connection.execute("SELECT 1").fetchone() == (1,)
