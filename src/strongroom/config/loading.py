"""Which configuration counts: a file, over it the environment, over that the flags.

The file is the first of --config, $STRONGROOM_CONFIG, ./strongroom.toml,
~/.config/strongroom/strongroom.toml, /etc/strongroom/strongroom.toml. No file
at all is fine: flags alone are enough to restore. The layer that brings a key
(passphrase, key file, recovery code) brings all keys: a passphrase from the
file is not tried behind the back of somebody who gave another one.

Paths in a file are relative to its folder, paths in flags and environment to
the current one. Every value keeps its origin for `config show`.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.config.building import Key, build, show_key
from strongroom.config.lines import Lines
from strongroom.config.model import Configuration
from strongroom.config.places import search_path
from strongroom.errors import ConfigError

_HOLDERS: tuple[Key, ...] = (
    ("repository", "passphrase"),
    ("repository", "key_file"),
    ("repository", "recovery_code"),
)
# Goes with them when another layer brings a key, but by itself drives none away: $KMS_KEY_ID is
# set for artefacts as well, beside a passphrase in the file.
_KMS: Key = ("repository", "kms_key")
# Environment variable → key. Those of the second table hold the secret itself,
# so the configuration gets a reference to them.
VARIABLES: Mapping[str, Key] = {
    "STRONGROOM_REPOSITORY": ("repository", "url"),
    "STRONGROOM_KEY_FILE": ("repository", "key_file"),
    "STRONGROOM_TIMEZONE": ("timezone",),
    "STRONGROOM_CACHE_DIR": ("cache_dir",),
    "STRONGROOM_STATE_DIR": ("state_dir",),
    "STRONGROOM_RCLONE": ("rclone_bin",),
    "STRONGROOM_LOG_FORMAT": ("log", "format"),
    "KMS_KEY_ID": ("repository", "kms_key"),
}
SECRET_VARIABLES: Mapping[str, Key] = {
    "STRONGROOM_PASSPHRASE": ("repository", "passphrase"),
    "STRONGROOM_RECOVERY_CODE": ("repository", "recovery_code"),
}


class ConfigFaults(ConfigError):
    """The configuration has faults; `faults` lists all of them as (place, sentence)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        place, text = faults[0]
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{place}: {text}{more}.")
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Override:
    """A value from a flag: the flag's name and what was given."""

    key: Key
    value: str | int
    flag: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, the file it came from, and every value that is set, as written."""

    configuration: Configuration
    path: str | None
    values: Mapping[Key, Any]
    _overlaid: Mapping[Key, str]
    _lines: Lines

    def origin(self, key: Key) -> str:
        """Where a value came from: `file:line`, a variable or a flag."""
        return self._overlaid.get(key) or _place_of_file(key, self.path, self._lines)


def load(
    *,
    config: str | None = None,
    overrides: tuple[Override, ...] = (),
    environ: Mapping[str, str],
) -> Loaded:
    """Find, read and merge; ConfigFaults with every fault, or ConfigError when no file is there."""
    path = find_file(config, environ)
    text = _read(path) if path else ""
    lines = Lines(text)
    merged = _rebase(_parse(path, text), os.path.dirname(os.path.abspath(path or ".")))
    origins: dict[Key, str] = {}
    _, faults = build(merged)  # of the file alone: what lies over a fault does not mend it
    if faults:
        raise ConfigFaults([(_place(each.key, path, lines, {}), each.text) for each in faults])
    for layer in _layers(environ, overrides):
        _overlay(merged, origins, layer)
    configuration, faults = build(merged)
    if configuration is None:
        raise ConfigFaults([(_place(each.key, path, lines, origins), each.text) for each in faults])
    return Loaded(configuration, path, dict(_leaves(merged, ())), origins, lines)


def find_file(config: str | None, environ: Mapping[str, str]) -> str | None:
    """The file that counts; ConfigError when a named one is not there."""
    variable = environ.get("STRONGROOM_CONFIG")
    for named, by in ((config, "--config"), (variable, "$STRONGROOM_CONFIG")):
        if named:
            if not os.path.exists(named):
                raise ConfigError(f"The configuration {named}, named by {by}, is not there.")
            return named
    for candidate in search_path(environ):
        if os.path.exists(candidate):
            _refuse_foreign(candidate)
            return candidate
    return None


def _refuse_foreign(path: str) -> None:
    """A file that was found, not named, must be ours: `cmd:` in it is run."""
    status = os.stat(path)
    foreign = status.st_uid not in (0, os.geteuid())
    if stat.S_ISREG(status.st_mode) and (foreign or status.st_mode & 0o002):
        why = "belongs to somebody else" if foreign else "can be written by everybody"
        raise ConfigError(
            f"The configuration {path} was found but not used: it {why}.",
            do=f"If you trust it, name it: `--config {path}`.",
        )


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8")
    except OSError as fault:
        raise ConfigError(f"{path} cannot be read: {fault.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.") from None


def _parse(path: str | None, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ConfigFaults([(str(path), f"is not TOML: {fault}")]) from None


def _layers(
    environ: Mapping[str, str], overrides: tuple[Override, ...]
) -> list[list[tuple[Key, Any, str]]]:
    variables: list[tuple[Key, Any, str]] = [
        (key, environ[name], f"${name}") for name, key in VARIABLES.items() if environ.get(name)
    ]
    variables += [
        (key, f"env:{name}", f"${name}")
        for name, key in SECRET_VARIABLES.items()
        if environ.get(name)
    ]
    flags: list[tuple[Key, Any, str]] = [(each.key, each.value, each.flag) for each in overrides]
    return [variables, flags]


def _overlay(
    merged: dict[str, Any], origins: dict[Key, str], layer: list[tuple[Key, Any, str]]
) -> None:
    if any(key in _HOLDERS for key, _, _ in layer):
        for holder in (*_HOLDERS, _KMS):
            table = merged.get(holder[0])
            if isinstance(table, dict):
                table.pop(holder[1], None)
            origins.pop(holder, None)
    for key, value, origin in layer:
        table = merged
        for part in key[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                return  # `build` names the value that stands where a table belongs
        table[key[-1]] = value
        origins[key] = origin


def _rebase(document: dict[str, Any], folder: str) -> dict[str, Any]:
    """Make the paths of the file absolute, and leave what is of the wrong kind to `build`."""
    for key in ("cache_dir", "state_dir", "rclone_bin", "rclone_config"):
        _absolute(document, key, folder)
    repository = document.get("repository")
    if isinstance(repository, dict):
        _absolute(repository, "key_file", folder)
        url = repository.get("url")
        if isinstance(url, str) and (url.startswith(".") or "/" in url) and ":" not in url:
            _absolute(repository, "url", folder)
        if isinstance(repository.get("s3"), dict):
            _absolute(repository["s3"], "ca_file", folder)
    sources = document.get("source")
    for source in sources.values() if isinstance(sources, dict) else ():
        if isinstance(source, dict) and source.get("type") == "files":
            _absolute(source, "path", folder, unless="rclone:")
        runbook = source.get("runbook") if isinstance(source, dict) else None
        for command in runbook.values() if isinstance(runbook, dict) else ():
            if isinstance(command, dict):
                _absolute(command, "cwd", folder)
    return document


def _absolute(table: dict[str, Any], key: str, folder: str, unless: str = "\0") -> None:
    value = table.get(key)
    if isinstance(value, str) and value and not value.startswith(unless):
        table[key] = os.path.join(folder, os.path.expanduser(value))


def _leaves(table: Mapping[str, Any], at: Key) -> list[tuple[Key, Any]]:
    found: list[tuple[Key, Any]] = []
    for name, value in table.items():
        key = (*at, name)
        found += _leaves(value, key) if isinstance(value, Mapping) else [(key, value)]
    return found


def _place(key: Key, path: str | None, lines: Lines, origins: Mapping[Key, str]) -> str:
    origin = origins.get(key) or _place_of_file(key, path, lines)
    return f"{origin}: {show_key(key)}" if key else origin


def _place_of_file(key: Key, path: str | None, lines: Lines) -> str:
    """`file:line` of a key, or of the table in which it is missing."""
    while key:
        line = lines.of(key)
        if line:
            return f"{path}:{line}"
        key = key[:-1]
    return path or "environment"
