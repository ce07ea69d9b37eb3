"""What a command tells the audit log of itself: who it is, and nothing that is secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from strongroom import wiring
from strongroom.config.loading import SECRET_VARIABLES, load
from strongroom.config.secrets import KINDS, Secret, resolve
from strongroom.errors import StrongroomError
from strongroom.observe.changes import Configured, digest
from strongroom.operations.recording import Recorder, whoever

if TYPE_CHECKING:
    from strongroom.cli.desk import Desk

_VARIABLES = (
    *SECRET_VARIABLES, "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RCLONE_CONFIG_PASS",
)  # fmt: skip
_SHORTEST = 4  # characters: a shorter secret stands in too many words to be taken out
_IN_URL = re.compile(r"(://[^\s/@:]*):[^\s/@]+@")
_ASSIGNED = re.compile(
    r"(?i)\b((?:ssl)?password|passwd|passphrase|secret|token)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|\S+)"
)
_REFERENCE = re.compile(rf"({'|'.join(KINDS)}):.+", re.DOTALL)


def secrets_of(desk: Desk) -> list[str]:
    """Every secret that this command can have had in its hands, but for what was typed."""
    return [*in_environment(desk.environ), *_secrets(desk)]


def in_environment(environ: Mapping[str, str]) -> list[str]:
    """Secrets that stand in the environment by themselves."""
    return [environ[name] for name in _VARIABLES if environ.get(name)]


def recorder_of(desk: Desk) -> Recorder:
    """The recorder of the repository that a desk has; nothing is contacted."""
    return Recorder(
        os.path.join(desk.state_dir, digest(desk.storage.url)[:16]),
        whoever(desk.environ, desk.trigger),
        now=wiring.now,
        random=wiring.random_bytes,
        clean=desk.clean,
        warn=desk.output.warning,
        configured=lambda: configured(desk),
        ended=desk.ended,
    )


def without_secrets(text: str, known: list[str]) -> str:
    """A text without the secrets that are known, and without what looks like one."""
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "…")
    return _ASSIGNED.sub(r"\1\2…", _IN_URL.sub(r"\1:…@", text))


def configured(desk: Desk) -> Configured | None:
    """The file that counts, a hash for each value; flags and environment are left out."""
    path = desk.loaded.path
    if path is None:
        return None
    try:
        values = load(config=path, environ={}).values
    except StrongroomError:
        return None
    hashed = {".".join(key): digest(_shown(value)) for key, value in values.items()}
    return Configured(os.path.abspath(path), hashed)


def _shown(value: Any) -> str:
    """A value, but of a reference to a secret only its kind."""
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return f"{found[1]}:" if found else repr(value)


def _secrets(desk: Desk) -> Iterator[str]:
    for secret in _references(desk.configuration):
        if secret.kind == "cmd":
            continue  # it is not run for this
        try:
            yield os.fsdecode(resolve(secret, desk.environ))
        except StrongroomError:
            continue


def _references(value: Any) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield from _references(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _references(each)


__all__ = ["configured", "in_environment", "recorder_of", "secrets_of", "without_secrets"]
