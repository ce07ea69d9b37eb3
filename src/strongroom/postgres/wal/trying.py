"""archive_command, tried as the server would run it, with --dry-run: why WAL was not archived.

Rule: only our own command is run, with the words that the server has, as the server's account, in its data
directory, with its environment as far as that can be read; never as anybody else, and never as root: who may
write archive_command could otherwise have us run what he likes. Nothing of another account's process is
handed to it. Nothing is stored by it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator, Mapping

from strongroom.postgres.inspecting import LocalFiles
from strongroom.rules.archiving import ArchiveCommand, Attempt

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MISSING, _UNSTARTABLE = 127, 126


def try_command(
    command: ArchiveCommand,
    directory: str,
    files: LocalFiles,
    *,
    failed: str | None,
    seconds: float,
) -> tuple[Attempt | None, str]:
    """Try it on the file that failed last, or another; or say why it was not tried."""
    if not command.simple:
        return None, "a shell's signs are in archive_command, and it is not run for a try"
    if files.owner == 0:
        return None, f"{directory} belongs to root, as whom no server runs"
    if os.geteuid() not in (0, files.owner):
        mine = pwd.getpwuid(os.geteuid()).pw_name
        return None, f"the server runs as {files.account}, and this is {mine}"
    name = next(
        (one for one in (failed, *files.ready, *files.segments) if one and _there(directory, one)),
        None,
    )
    if name is None:
        return None, "there is no file in pg_wal to try it on"
    environ = {**_environment(directory, files.owner), **(command.given or {})}
    words = [*command.on(f"pg_wal/{name}"), "--dry-run"]
    return _run(words, directory, environ, files, seconds)


def _run(
    words: list[str],
    directory: str,
    environ: Mapping[str, str],
    files: LocalFiles,
    seconds: float,
) -> tuple[Attempt | None, str]:
    program = _resolve(words[0], environ.get("PATH", _PATH))
    if program is None:
        return Attempt(_MISSING, f"{words[0]}: not found", account=files.account), ""
    changes = os.geteuid() != files.owner
    groups = _groups(directory, files.owner)
    try:
        done = subprocess.run(
            [program, *words[1:]],
            cwd=directory,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
            user=files.owner if changes else None,
            group=groups[0] if changes else None,
            extra_groups=groups[1:] if changes else None,
        )
    except FileNotFoundError as fault:
        return Attempt(_MISSING, f"{fault.filename}: not found", account=files.account), ""
    except PermissionError as fault:
        return Attempt(_UNSTARTABLE, str(fault.strerror), account=files.account), ""
    except OSError as fault:
        return Attempt(-1, str(fault.strerror), account=files.account), ""
    except subprocess.TimeoutExpired:
        return None, f"archive_command did not end within {seconds:g} s"
    said = done.stderr.decode("utf-8", "replace")
    what, do, code = _four_lines(said)
    return Attempt(done.returncode, what, do, code, files.account), ""


def _four_lines(said: str) -> tuple[str, str, str]:
    """What happened, what to do and the code, out of what our command said last."""
    what = do = code = ""
    lines = said.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("strongroom: "):
            what, do, code = line.removeprefix("strongroom: "), "", ""
            for later in lines[at + 1 : at + 4]:
                if later.startswith("  to do: "):
                    do = later.removeprefix("  to do: ")
                elif "docs/reference/errors.md#" in later:
                    code = later.split()[0]
    return (what or " ".join(lines[-1:]).strip()), do, code


def _there(directory: str, name: str) -> bool:
    return os.path.exists(os.path.join(directory, "pg_wal", name))


@contextlib.contextmanager
def _process(directory: str, owner: int) -> Iterator[int]:
    """The server's process, as an open folder of /proc: surely one of its account. OSError, ValueError."""
    with open(os.path.join(directory, "postmaster.pid"), "rb") as file:
        number = int(file.readline())
    folder = os.open(f"/proc/{number}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != owner:
            raise ValueError("the process is another account's")
        yield folder
    finally:
        os.close(folder)


def _read(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:
        return file.read()


def _environment(directory: str, owner: int) -> dict[str, str]:
    """The server's own environment; where it cannot be read, hardly any."""
    with contextlib.suppress(OSError, ValueError), _process(directory, owner) as folder:
        pairs = [
            one.partition(b"=") for one in _read(folder, "environ").split(b"\0") if b"=" in one
        ]
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    home = "/"
    with contextlib.suppress(KeyError):
        home = pwd.getpwuid(owner).pw_dir
    return {"PATH": _PATH, "HOME": home, "LC_ALL": "C.UTF-8"}


def _groups(directory: str, owner: int) -> list[int]:
    """Its groups, the first one first: the server's own, else those of the account."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError, KeyError),
        _process(directory, owner) as folder,
    ):
        lines = _read(folder, "status").decode("utf-8", "replace").splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        return [int(told["Gid"].split()[1]), *map(int, told["Groups"].split())]
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(owner)
        return [entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)]
    return [owner]


def _resolve(program: str, path: str) -> str | None:
    """Where a shell would find a program; itself where it is a path."""
    if "/" in program:
        return program
    for folder in path.split(os.pathsep):
        whole = os.path.join(folder, program)
        if os.path.isfile(whole) and os.access(whole, os.X_OK):
            return whole
    return None


__all__ = ["try_command"]
