"""`wal push` and `wal fetch` as PostgreSQL runs them, on a data directory that stands still.

Each with the daemon and without it: what they answer must not depend on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from postgres.wal.conftest import Still
from postgres.wal.room import WalRoom, until
from strongroom.postgres.physical.crc import crc32c

HISTORY = b"1\t0/3000000\tno recovery target specified\n"


@pytest.fixture(params=["daemon", "direct", "client"])
def served(request: pytest.FixtureRequest, room: WalRoom) -> WalRoom:
    if request.param != "direct":
        room.daemon()
    room.compiled = request.param == "client"
    return room


def given(room: WalRoom, name: str, data: bytes) -> str:
    """A file of that name for `push`, beside the data directory; its path."""
    path = room.root / "given" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    for each in (path, path.parent):
        os.chown(each, room.account.uid, room.account.gid)
    return str(path)


def delivered(still: Still, path: str) -> bytes:
    """What was delivered, taken away again."""
    place = os.path.join(still.data, path)
    data = Path(place).read_bytes()
    os.unlink(place)
    return data


def test_what_is_pushed_is_fetched(served: WalRoom, still: Still) -> None:
    first = still.segments[0]
    served.push(still.data, f"pg_wal/{first}")
    served.push(still.data, f"pg_wal/{first}")  # trap 27: again, after a crash, is fine
    served.fetch(still.data, first, "pg_wal/RECOVERYXLOG")
    data = delivered(still, "pg_wal/RECOVERYXLOG")
    assert data == still.read(f"pg_wal/{first}")
    for name, content in (
        ("00000002.history", HISTORY),
        (f"{first}.00000028.backup", b"START WAL LOCATION: 0/1000028 (file x)\n"),
        (f"{still.segments[1]}.partial", still.read(f"pg_wal/{still.segments[1]}")),
    ):
        served.push(still.data, given(served, name, content))
        served.fetch(still.data, name, "pg_wal/RECOVERYHISTORY")
        data = delivered(still, "pg_wal/RECOVERYHISTORY")
        assert data == content
    # trap 45: nothing of it is ever to be seen in pg_wal under the name of a segment, or stays
    assert [one for one in os.listdir(still.data + "/pg_wal") if "strongroom" in one] == []


def test_trap_27_other_content_is_refused(room: WalRoom, still: Still) -> None:
    room.daemon()
    first = still.segments[0]
    room.push(still.data, f"pg_wal/{first}")
    other = bytearray(still.read(f"pg_wal/{first}"))
    other[-1] ^= 1
    said = room.push(still.data, given(room, first, bytes(other)), status=9)
    assert "wal-conflict" in said
    assert "other content" in said


def test_trap_31_what_is_not_of_this_server_is_refused(room: WalRoom, still: Still) -> None:
    room.daemon()
    first, second = still.segments[:2]
    whole = still.read(f"pg_wal/{first}")

    def header(at: int, shape: str, value: int) -> bytes:
        changed = bytearray(whole)
        struct.pack_into(shape, changed, at, value)
        return bytes(changed)

    for name, data, word in (
        (first, whole[:-1], "bytes"),
        (first, whole + b"\0", "longer"),
        (first, bytes(len(whole)), "beginning"),
        (second, whole, "elsewhere"),
        (first, header(0, "<H", 0xD118), "PostgreSQL 18"),
        (first, header(4, "<I", 7), "timeline 7"),
        (first, header(24, "<Q", 4711), "system 4711"),
        ("00000002.history", b"nonsense\n", "history"),
        ("00000002.history", b"", "timeline"),
        ("00000002.history", b"2\t0/3000000\tx\n", "timeline"),
        (f"{first}.00000028.backup", b"", "backup"),
    ):
        said = room.push(still.data, given(room, name, data), status=4)
        assert word in said, said


def another_system(room: WalRoom, still: Still, name: str) -> str:
    """A data directory of a cluster that was made anew, with one segment; its path."""
    folder = room.root / "another"
    (folder / "global").mkdir(parents=True)
    (folder / "pg_wal").mkdir()
    control = bytearray(still.read("global/pg_control"))
    struct.pack_into("<Q", control, 0, 4711)
    struct.pack_into("<I", control, 288, crc32c(control[:288]))
    (folder / "global/pg_control").write_bytes(control)
    (folder / "PG_VERSION").write_text("16\n")
    segment = bytearray(still.read(f"pg_wal/{name}"))
    struct.pack_into("<Q", segment, 24, 4711)
    (folder / "pg_wal" / name).write_bytes(segment)
    for path, _, names in os.walk(folder):
        for each in [path, *(os.path.join(path, one) for one in names)]:
            os.chown(each, room.account.uid, room.account.gid)
    return str(folder)


def test_trap_31_a_source_is_one_system_until_somebody_says_so(room: WalRoom, still: Still) -> None:
    room.daemon()
    first = still.segments[0]
    room.push(still.data, f"pg_wal/{first}")
    another = another_system(room, still, first)
    said = room.push(another, f"pg_wal/{first}", status=4)
    assert "--accept-system" in said
    assert "4711" in said
    room.push(another, f"pg_wal/{first}", "--accept-system")
    room.push(another, f"pg_wal/{first}")
    room.push(still.data, f"pg_wal/{first}")  # the old one is as it was


def test_a_push_that_is_only_tried_stores_nothing(room: WalRoom, still: Still) -> None:
    """Also beside a daemon, and of what is there already; it says what the push would."""
    room.daemon()
    first, second = still.segments[:2]
    room.push(still.data, f"pg_wal/{first}", "--dry-run")
    assert not list(room.repository.rglob(first)) and not list(
        room.repository.rglob("wal/sources/*")
    )
    room.push(still.data, f"pg_wal/{first}")
    before = sorted(room.repository.rglob("wal/**/*"))
    room.push(still.data, f"pg_wal/{first}", "--dry-run")
    room.push(still.data, f"pg_wal/{second}", "--dry-run")
    another = another_system(room, still, first)
    assert "4711" in room.push(another, f"pg_wal/{first}", "--dry-run", status=4)
    assert sorted(room.repository.rglob("wal/**/*")) == before
    assert not [one for one in room.repository.rglob("probe/**/*") if one.is_file()]


def test_trap_29_a_push_never_ends_above_125(room: WalRoom, still: Still) -> None:
    segment = f"pg_wal/{still.segments[0]}"
    wrong = room.root / "wrong.toml"
    for words, status in (
        ([], 2),
        (["--no-such-flag", segment], 2),
        (["pg_wal/archive_status"], 2),
        (["--source", "nobody", segment], 2),
        (["--source", "db", "pg_wal/00000001000000FF000000FF"], 5),
        (["--source", "db", segment, "--repository", str(room.root / "nothing")], 5),
        (["--source", "db", segment, "--key-file", str(wrong)], 2),
    ):
        found, _, said = room.run(*room.words("push", *words), cwd=still.data, status=None)
        assert found == status, said
    found, _, _ = room.run(*room.words("push", "--source", "db", segment), status=None)
    assert found == 4  # not in a data directory


@pytest.mark.parametrize("verb", ["push", "fetch"])
def test_trap_29_and_42_stopped_by_a_signal(room: WalRoom, still: Still, verb: str) -> None:
    """A push ends with 1, so that the archiver lives on; a fetch with 143, which PostgreSQL knows."""
    # Opening the repository waits for long: the passphrase comes from a command that sleeps.
    room.config.write_text(
        room.config.read_text().replace(f'key_file = "{room.key}"', 'passphrase = "cmd:sleep 600"')
    )
    more = ["--source", "db", f"pg_wal/{still.segments[0]}"]
    if verb == "fetch":
        more = [still.segments[0], "pg_wal/x"]
    process = room.start(*room.words(verb, *more), cwd=still.data)
    until(lambda: sleeping(process.pid))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == (1 if verb == "push" else 143)


def sleeping(pid: int) -> bool:
    """Whether a process has come to run `sleep`."""
    done = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "comm="], capture_output=True, text=True, check=False
    )
    return "sleep" in done.stdout


def test_trap_42_absent_is_1_and_every_doubt_is_above_125(served: WalRoom, still: Still) -> None:
    first = still.segments[0]
    served.push(still.data, f"pg_wal/{first}")
    served.fetch(still.data, "0000000100000000000000FE", "pg_wal/x", status=1)
    served.fetch(still.data, "00000009.history", "pg_wal/x", status=1)
    served.fetch(still.data, "what.is.this", "pg_wal/x", status=202)
    served.fetch(still.data, first, "no/such/folder", status=201)
    served.fetch(str(served.root), first, "x", status=204)  # no data directory
    (stored,) = served.repository.glob(f"wal/*/00000001/{first}")
    data = bytearray(stored.read_bytes())
    data[-40] ^= 4
    stored.write_bytes(data)
    said = served.fetch(still.data, first, "pg_wal/x", status=209)
    assert "damaged" in said
    served.repository.rename(served.root / "away")
    status, _, _ = served.run(
        *served.words("fetch", first, "pg_wal/x"), cwd=still.data, status=None
    )
    assert status > 125
    served.fetch(still.data, first, "pg_wal/x", "--key-file", "none", status=202)
    served.fetch(still.data, first, "pg_wal/x", "--no-such-flag", status=202)
    assert not os.path.exists(os.path.join(still.data, "pg_wal/x"))


def test_trap_42_a_broken_installation_is_a_doubt(still: Still, tmp_path: Path) -> None:
    """Python ends with 1 when a module is missing, and PostgreSQL would open the database."""
    (tmp_path / "cyclopts.py").write_text("raise ImportError('half an upgrade')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from strongroom.cli.main import main; main()", "wal", "fetch",
         still.segments[0], "x"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode > 125
    assert b"half an upgrade" in done.stderr


def test_trap_42_a_standby_may_ask_again(room: WalRoom, still: Still) -> None:
    """A store that cannot be reached stops a recovery, and not a standby that says it is one."""
    text = room.config.read_text()
    room.config.write_text(text.replace(str(room.repository), "s3://nowhere/x"))
    env = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "x",
    }
    words = room.words("fetch", still.segments[0], "pg_wal/x")
    marker = Path(still.data, "standby.signal")
    assert room.run(*words, "--standby", cwd=still.data, env=env, status=None)[0] == 207
    marker.touch()
    try:
        assert room.run(*words, "--standby", cwd=still.data, env=env, status=None)[0] == 1
    finally:
        marker.unlink()


def test_trap_43_a_partial_segment_is_delivered_when_asked_for_and_full(
    served: WalRoom, still: Still
) -> None:
    first = still.segments[0]
    whole = still.read(f"pg_wal/{first}")
    served.push(still.data, given(served, f"{first}.partial", whole))
    served.fetch(still.data, first, "pg_wal/x", status=1)
    served.fetch(still.data, first, "pg_wal/x", "--partial")
    data = delivered(still, "pg_wal/x")
    assert data == whole


def test_a_writer_s_key_archives_and_cannot_deliver(room: WalRoom, still: Still) -> None:
    key = str(room.root / "writer")
    room.run(
        "key", "add", "host", "--role", "writer", "--new-key-file", key, "--config",
        str(room.config),
    )  # fmt: skip
    room.config.write_text(room.config.read_text().replace(str(room.key), key))
    room.push(still.data, f"pg_wal/{still.segments[0]}")
    said = room.fetch(still.data, still.segments[0], "pg_wal/x", status=208)
    assert "reader's" in said


# -- the compiled client -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["push", "--source", "db", "pg_wal/x"],
        ["push", "--source=", "--config=strongroom.toml", "-c", "other.toml", "é\udcff"],
        ["fetch", "--standby", "--alone", "--partial", "name", "path"],
        ["fetch", "--config", "nowhere", "name", "path"],
        ["fetch", "--alone=1", "name", "path"],
        ["fetch", "-c=x", "name", "path"],
        ["fetch", "name", "path", "more"],
        ["fetch", "name"],
        ["push", "--partial", "pg_wal/x"],
        ["push", "-"],
        ["push", "pg_wal/x", "--source"],
        ["status"],
        [],
    ],
)
@pytest.mark.parametrize(
    "env", [{}, {"STRONGROOM_CONFIG": "other.toml", "STRONGROOM_REPOSITORY": "r"}]
)
def test_the_compiled_client_asks_what_the_python_one_asks(
    tmp_path: Path, words: list[str], env: dict[str, str]
) -> None:
    """Byte for byte, at the same socket; and what neither understands goes to the command."""
    for name in ("strongroom.toml", "other.toml"):
        (tmp_path / name).touch()
    address = str(tmp_path / "socket")
    environ = {
        **env,
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "STRONGROOM_WAL_SOCKET": address,
    }
    heard = []
    for argv in (
        [
            sys.executable,
            "-c",
            "import sys; from strongroom.cli.wal_client import quick; quick(sys.argv[1:])",
            "wal",
        ],
        [str(Path(sys.executable).parent / "strongroom-wal")],
    ):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            listener.settimeout(0.01)
            process = subprocess.Popen(
                [*argv, *words], cwd=tmp_path, env=environ, stderr=subprocess.PIPE
            )
            question = b""
            while process.poll() is None and not question:
                with contextlib.suppress(TimeoutError):
                    channel, _ = listener.accept()
                    with channel:
                        channel.settimeout(60)
                        question = channel.recv(65536)
                        channel.sendall(b"..=\x05\x03\0\0\0why")
            said = process.communicate(timeout=60)[1]
            if question:
                assert said == b"why\n"
                assert argv[0] == sys.executable or process.returncode == 5
            heard.append(question)
        os.unlink(address)
    assert heard[0] == heard[1]


def test_trap_29_and_42_a_client_alone_and_a_client_that_is_stopped(tmp_path: Path) -> None:
    alone = tmp_path / "strongroom-wal"
    shutil.copy(Path(sys.executable).parent / "strongroom-wal", alone)
    if alone.read_bytes()[:2] == b"#!":
        pytest.skip("strongroom-wal was built without a compiler")
    for words, status in (
        (["push", "x"], 1),
        (["fetch", "x", "y"], 201),
        (["fetch", "--odd"], 201),
    ):
        assert subprocess.run([alone, *words], cwd=tmp_path, check=False).returncode == status
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        for words, status in ((["push", "x"], 1), (["fetch", "x", "y"], -signal.SIGTERM)):
            process = subprocess.Popen(
                [alone, *words, "--socket", tmp_path / "socket"], cwd=tmp_path
            )
            channel, _ = listener.accept()
            with channel:
                channel.recv(65536)
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == status


# -- the daemon --------------------------------------------------------------------------------


def test_the_daemon_is_for_its_own_configuration_only(room: WalRoom, still: Still) -> None:
    """Another configuration's client does the work itself, in its own repository."""
    room.daemon()
    other = WalRoom()
    try:
        other.init()
        other.socket = room.socket
        other.push(still.data, f"pg_wal/{still.segments[0]}")
        assert [*other.repository.glob("wal/*/00000001/*")]
        assert not [*room.repository.glob("wal/*/00000001/*")]
        # One that was changed since the daemon read it is another one.
        room.config.write_text(room.config.read_text() + "\n# changed\n")
        room.push(still.data, f"pg_wal/{still.segments[0]}")
        assert [*room.repository.glob("wal/*/00000001/*")]
    finally:
        other.close()


def test_the_socket_is_its_user_s_and_one_daemon_s(room: WalRoom, still: Still) -> None:
    daemon = room.daemon()
    assert room.socket.stat().st_mode & 0o777 == 0o600
    room.run(*room.words("daemon"), status=6)
    daemon.kill()
    daemon.wait()
    again = room.daemon()  # the socket that a killed one left is no hindrance
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 143
    assert not room.socket.exists()
    room.push(still.data, f"pg_wal/{still.segments[0]}")


def test_a_daemon_ends_when_nobody_asks(room: WalRoom) -> None:
    assert room.daemon("--idle", "0.2").wait(60) == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_fetch_leaves_a_process_behind_that_answers_those_that_follow(
    room: WalRoom, still: Still, *, compiled: bool
) -> None:
    room.compiled = compiled
    first, second = still.segments[:2]
    for name in (first, second):
        room.push(still.data, f"pg_wal/{name}")
    restored = room.root / "restored"  # a data directory that no process knows
    shutil.copytree(Path(still.data, "global"), restored / "global")
    shutil.copy(Path(still.data, "PG_VERSION"), restored)
    for path in [restored, *restored.rglob("*")]:
        os.chown(path, room.account.uid, room.account.gid)
    here = restored.stat()
    address = f"\0strongroom-wal-{room.account.uid}-{here.st_dev}-{here.st_ino}"

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(address) == 0

    room.fetch(str(restored), first, "x", "--alone")
    room.fetch(str(restored), "00000009.history", "x", status=1)
    assert not answers()
    room.fetch(str(restored), first, "x")
    until(answers)
    room.key.unlink()  # nobody else can read any more
    room.fetch(str(restored), second, "x")
    assert (restored / "x").read_bytes() == still.read(f"pg_wal/{second}")


def test_trap_32_the_daemon_looks_ahead_and_trusts_no_stale_success(
    room: WalRoom, still: Still
) -> None:
    """What is ready is archived before it is asked for; a file that has changed since is not taken
    for the one that was archived, and nothing of this outlives the process."""
    room.daemon()
    status = Path(still.data, "pg_wal/archive_status")
    first, second, third = still.segments[:3]
    kept = set(os.listdir(status))
    try:
        for name in (first, second, third):
            (status / f"{name}.ready").touch()
        room.push(still.data, f"pg_wal/{first}")
        until(lambda: len([*room.repository.glob("wal/*/00000001/0*")]) == 3)
        time.sleep(0.2)
        place = Path(still.data, "pg_wal", second)
        whole = place.read_bytes()
        changed = bytearray(whole)
        changed[-1] ^= 1
        place.write_bytes(changed)
        try:
            said = room.push(still.data, f"pg_wal/{second}", status=9)
            assert "wal-conflict" in said
        finally:
            place.write_bytes(whole)
        room.push(still.data, f"pg_wal/{second}")
        room.push(still.data, f"pg_wal/{third}")
    finally:
        for name in set(os.listdir(status)) - kept:
            (status / name).unlink()
