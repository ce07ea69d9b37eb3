"""Secrets by reference only: a configuration says where a secret is, never what it is.

    env:NAME          an environment variable
    file:PATH         a file that only its owner (and group) may read
    cmd:PROGRAM ARG   what a program prints; split like a shell would, run without one
    systemd:NAME      a credential of the service ($CREDENTIALS_DIRECTORY/NAME)

One trailing newline is dropped, because editors and `pass` add one. A value
that is none of these is refused without being repeated: what is printed ends
up in logs. References are resolved when they are needed, not when they are read.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from strongroom.errors import ConfigError

KINDS = ("env", "file", "cmd", "systemd")
_FORMS = "env:NAME, file:PATH, cmd:PROGRAM ARGUMENT… or systemd:NAME"
_MAX_BYTES = 64 * 1024
_SECONDS = 60
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_CREDENTIAL = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
_PASSWORD_KEYS = frozenset({"password", "sslpassword", "passwd", "secret", "oauth_client_secret"})
_KEYWORD = re.compile(r"(?:^|\s)([a-z_]+)\s*=", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is. Printing it shows the reference, which is no secret."""

    kind: str
    where: str

    def __str__(self) -> str:
        """The reference as written."""
        return f"{self.kind}:{self.where}"


def parse_secret(text: str) -> Secret:
    """Read a reference; ValueError, which never repeats `text`, when it is not one."""
    kind, colon, where = text.partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"a literal secret is refused; write {_FORMS}")
    if kind == "env" and not _NAME.fullmatch(where):
        raise ValueError("env: needs the name of an environment variable")
    if kind == "systemd" and not (_CREDENTIAL.fullmatch(where) and where.strip(".")):
        raise ValueError("systemd: needs the name of a credential, without a slash")
    if kind == "file" and not where:
        raise ValueError("file: needs a path")
    if kind == "cmd":
        _split(where)
    return Secret(kind, where)


def resolve(secret: Secret, environ: Mapping[str, str]) -> bytes:
    """Fetch the secret; ConfigError, which names only the reference, when that fails."""
    fetch = {"env": _from_env, "file": _from_file, "cmd": _from_command, "systemd": _from_systemd}
    value = fetch[secret.kind](secret, environ)
    value = value[:-1] if value.endswith(b"\n") else value
    value = value[:-1] if value.endswith(b"\r") else value
    if not value:
        raise ConfigError(f"The secret {secret} is empty.")
    return value


def has_password(address: str) -> bool:
    """Whether a connection string or URL carries a password, in any of the ways libpq reads one."""
    if "://" not in address:
        return any(word.lower() in _PASSWORD_KEYS for word in _KEYWORD.findall(address))
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    authority = parts.netloc.rpartition("@")[0]
    query = {key.lower() for key in parse_qs(parts.query, keep_blank_values=True)}
    return ":" in authority or bool(query & _PASSWORD_KEYS)


def _from_env(secret: Secret, environ: Mapping[str, str]) -> bytes:
    value = environ.get(secret.where)
    if value is None:
        raise ConfigError(
            f"The secret {secret} cannot be had: the environment variable is not set.",
            do=f"Set {secret.where} in the environment of this command, or refer to another place.",
        )
    return os.fsencode(value)


def _from_file(secret: Secret, environ: Mapping[str, str]) -> bytes:
    del environ
    return read_private(secret.where, f"The secret {secret}")


def read_private(path: str, label: str) -> bytes:
    """Read a small file that nobody but owner and group may read; ConfigError otherwise."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
                raise ConfigError(f"{label} cannot be had: {path} is not a file.")
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o026:
                raise ConfigError(
                    f"{label} is refused: {path} has mode {status.st_mode & 0o777:04o}, so that "
                    "others can read or change it.",
                    do=f"Run `chmod 600 {shlex.quote(path)}`.",
                )
            value = file.read(_MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigError(f"{label} cannot be had: {path}: {fault.strerror}.") from None
    if len(value) > _MAX_BYTES:
        raise ConfigError(f"{label} cannot be had: {path} is longer than {_MAX_BYTES} bytes.")
    return value


def _from_systemd(secret: Secret, environ: Mapping[str, str]) -> bytes:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ConfigError(
            f"The secret {secret} cannot be had: $CREDENTIALS_DIRECTORY is not set.",
            do="Run this from the systemd unit that has LoadCredential= for it.",
        )
    return read_private(os.path.join(directory, secret.where), f"The secret {secret}")


def _from_command(secret: Secret, environ: Mapping[str, str]) -> bytes:
    argv = _split(secret.where)
    label = f"The secret from the command {argv[0]}"
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            check=False,
            env=dict(environ),
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{label} did not come within {_SECONDS} s.") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "it cannot be run"
        raise ConfigError(f"{label} cannot be had: {reason}.") from None
    if done.returncode:
        raise ConfigError(f"{label} cannot be had: it ended with status {done.returncode}.")
    if len(done.stdout) > _MAX_BYTES:
        raise ConfigError(f"{label} cannot be had: it printed more than {_MAX_BYTES} bytes.")
    return done.stdout


def _split(command: str) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError:
        raise ValueError("cmd: has a quote that is not closed") from None
    if not argv:
        raise ValueError("cmd: needs a program")
    return argv
