"""The command as a person has it: a process, a home, a configuration, a vault.

Rule: nothing of the program is imported to act; every test runs `strongroom` and
looks at stdout, stderr, the exit status and the disk. But for one thing: what a guess of
the passphrase costs is a third of a short command, so `init` is followed by `cheapen`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from strongroom.errors import KeyRefused
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.repository import identity as identities
from strongroom.repository.keyring import add_slot, list_slots, open_keyring
from strongroom.storage.local import LocalStorage

STRONGROOM = str(Path(sys.executable).parent / "strongroom")
PASSPHRASE = "correct horse battery staple"
CONFIG = """\
[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.vault]
type = "files"
path = "{vault}"
promise = {{ rpo = "24h", rto = "4h", keep = "30d" }}
"""


@dataclass
class Done:
    """A command that has ended."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        body: dict[str, Any] = json.loads(self.stdout)
        assert body["version"] == 1
        return body

    @property
    def events(self) -> list[dict[str, Any]]:
        """JSON lines; the last must be of type result."""
        bodies = [json.loads(line) for line in self.stdout.splitlines()]
        assert all(body["version"] == 1 for body in bodies)
        assert bodies[-1]["type"] == "result"
        assert bodies[-1]["exit"] == self.status
        assert [body["type"] for body in bodies].count("result") == 1
        return bodies

    @property
    def result(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def error_lines(self) -> list[str]:
        """The four lines of the error; they are the last on stderr."""
        lines = self.stderr.splitlines()[-4:]
        assert lines[0].startswith("strongroom: "), self.stderr
        assert lines[1].startswith("  means: ")
        assert lines[2].startswith("  to do: ")
        code, _, document = lines[3].strip().partition(" · ")
        assert document == f"docs/reference/errors.md#{code}"
        return lines

    @property
    def code(self) -> str:
        return self.error_lines[3].split()[0]


@dataclass
class Desk:
    """One person's machine: a home, a folder with strongroom.toml, an environment."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home, self.vault, self.repository = (
            self.root / name for name in ("home", "vault", "repository")
        )
        self.config = self.root / "strongroom.toml"
        for folder in (self.home, self.vault):
            folder.mkdir(parents=True, exist_ok=True)
        path = os.environ["PATH"]
        self.environ = {
            "HOME": str(self.home),
            "PATH": path,
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "STRONGROOM_PASSPHRASE": PASSPHRASE,
        }

    def configure(self, text: str = CONFIG) -> None:
        self.config.write_text(text.format(repository=self.repository, vault=self.vault))

    def start(
        self, *words: str | bytes, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*options.pop("program", [STRONGROOM]), *words],
            cwd=options.pop("cwd", self.root),
            env={**self.environ, **(env or {})},
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            **options,
        )

    def run(
        self,
        *words: str | bytes,
        status: int | None = 0,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> Done:
        """Run `strongroom` with these words; the exit status must be `status`."""
        given = options.pop("given", None)
        if given is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*words, env=env, **options)
        stdout, stderr = process.communicate(given, timeout=240)
        done = Done(process.returncode, stdout or b"", stderr.decode())
        if status is not None:
            assert done.status == status, f"{words}: {done.status}\n{stdout!r}\n{done.stderr}"
        if done.status not in (0, 10):
            assert done.error_lines
        if words[0] == "init" and done.status == 0:
            cheapen(self.repository)
        return done


def cheapen(repository: Path) -> None:
    """Let a guess of the passphrase of a repository on this disk cost next to nothing."""
    if not (repository / identities.NAME).exists():
        return
    storage = LocalStorage(repository)
    holder = PassphraseHolder(PASSPHRASE.encode(), cost=Cost(passes=1, memory=64, lanes=2))
    slots = [slot for slot in list_slots(storage) if slot.kind == holder.kind]
    with contextlib.suppress(KeyRefused):
        keyring = open_keyring(storage, [holder], identities.load(storage).id)
        (slot,) = slots
        storage.delete([slot.name])
        made = datetime.fromisoformat(slot.created)
        add_slot(storage, keyring.current, holder, slot.label, made)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A machine with a configuration and an empty vault."""
    desk = Desk(tmp_path)
    desk.configure()
    return desk


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """The same with some files in the vault and a repository."""
    fill(desk.vault)
    desk.run("init", "--kit", "kit.txt", "--quiet")
    return desk


def fill(vault: Path) -> None:
    """A few files of the shapes that matter."""
    for folder in ("audits", "ml_features/deep/er"):
        (vault / folder).mkdir(parents=True)
    for number in range(20):
        (vault / f"audits/{number:02}.json").write_text(json.dumps({"number": number}))
    (vault / "ml_features/deep/er/vector.bin").write_bytes(os.urandom(300_000))
    (vault / "empty").touch()
    (vault / "link").symlink_to("audits/00.json")
    (vault / "audits/00.json").chmod(0o640)


Tree = dict[str, tuple[int, bytes]]


def damage_packs(repository: Path) -> None:
    """Flip two bits of every pack."""
    for path in (repository / "packs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            data[len(data) // 3] ^= 1
            data[200] ^= 1
            path.write_bytes(data)


def tree_of(folder: Path) -> Tree:
    """Every path below, with its mode and its content or target."""
    found: Tree = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            facts = os.lstat(path)
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            else:
                content = b""
            relative = os.path.relpath(path, os.fsencode(folder))
            found[os.fsdecode(relative)] = (facts.st_mode, content)
    return found


def on_terminal(desk: Desk, words: list[str], typed: list[bytes]) -> tuple[int, bytes]:
    """Run on a pseudo terminal and type; return exit status and everything that was shown."""
    environ = {**desk.environ, "TERM": "xterm"}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(desk.root)
        os.execve(STRONGROOM, [STRONGROOM, *words], environ)
    shown = b""
    for answer in typed:
        asked = shown.count(b": ")
        while shown.count(b": ") == asked:
            shown += os.read(terminal, 4096)
        os.write(terminal, answer)
    while True:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # Linux says EIO when the other end is closed
            break
        if not more:
            break
        shown += more
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


@pytest.fixture
def without_rights(desk: Desk) -> Callable[..., Done]:
    """Run as a user whom permissions bind: root gives up its power over them first."""
    if os.geteuid() != 0:
        return desk.run
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed, and root itself reads everything")
    bound = [setpriv, "--bounding-set=-dac_override,-dac_read_search,-fowner", STRONGROOM]

    def run(*words: str, **options: Any) -> Done:
        return desk.run(*words, program=bound, **options)

    return run
