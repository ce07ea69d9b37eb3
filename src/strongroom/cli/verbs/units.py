"""schedule cron, schedule systemd, schedule kubernetes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import fields

import strongroom
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.verbs.schedule import jobs_of
from strongroom.config.secrets import Secret
from strongroom.errors import AlreadyExists, StrongroomError
from strongroom.rules import units
from strongroom.rules.units import Setting

_DEFAULT = Everywhere()
_CONFIGURATION = "/etc/strongroom/strongroom.toml"


def cron(*, program: str | None = None, everywhere: Everywhere = _DEFAULT) -> int:
    """Print the crontab that makes the jobs run.

    Parameters
    ----------
    program
        Path of strongroom, where it is to run; otherwise that of this one.
    """
    desk = Desk(everywhere)
    text = units.crontab(jobs_of(desk), _setting(desk, program))
    return _print(desk, {"crontab": text}, None)


def systemd(
    *,
    program: str | None = None,
    user: str = "strongroom",
    output: str | None = None,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Print hardened systemd units: a service, a timer for each job, and `serve` instead of timers.

    Secrets come by LoadCredential, for references systemd:NAME, from /etc/strongroom/credentials.

    Parameters
    ----------
    program
        Path of strongroom, where it is to run; otherwise that of this one.
    user
        The user who runs the jobs.
    output
        Write them below this folder instead: `/` installs them.
    """
    desk = Desk(everywhere)
    return _print(desk, units.systemd(jobs_of(desk), _setting(desk, program, user)), output)


def kubernetes(*, image: str | None = None, everywhere: Everywhere = _DEFAULT) -> int:
    """Print Kubernetes CronJobs.

    Parameters
    ----------
    image
        The image that has strongroom in it.
    """
    desk = Desk(everywhere)
    chosen = image or f"strongroom:{strongroom.__version__}"
    text = units.kubernetes(jobs_of(desk), _setting(desk, None), image=chosen)
    return _print(desk, {"strongroom.yaml": text}, None)


def _print(desk: Desk, files: Mapping[str, str], output: str | None) -> int:
    desk.output.document("schedule", {"files": dict(files)})
    for path, text in files.items():
        if output is not None:
            _write(os.path.join(output, path.lstrip("/")), text)
            desk.output.line(os.path.join(output, path.lstrip("/")))
        else:
            if len(files) > 1:
                desk.output.line(f"# {path}")
            desk.output.line(text if len(files) > 1 else text.rstrip("\n"))
    return 0


def _write(path: str, text: str) -> None:
    """Write a file that is not there yet, or is the same."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        with open(path, encoding="utf-8") as file:
            if file.read() != text:
                raise AlreadyExists(
                    f"{path} is there already, and is another.",
                    do="Compare the two; give another folder, or move that one away.",
                ) from None
    except OSError as fault:
        raise StrongroomError(
            f"{path} cannot be written: {fault.strerror}.",
            means="What was printed before is written; the rest is not.",
            do="Give a folder that you may write to.",
        ) from None


def _setting(desk: Desk, program: str | None, user: str = "strongroom") -> Setting:
    secrets = sorted({(one.kind, one.where) for one in _secrets(desk.configuration)})
    url = desk.configuration.repository.url
    local = url is not None and "://" not in url and url.startswith("/")
    path = desk.loaded.path
    return Setting(
        program=program or _program(),
        configuration=_CONFIGURATION if path is None else os.path.abspath(path),
        zone=desk.configuration.timezone or "UTC",
        folder=url if local else None,
        credentials=tuple(where for kind, where in secrets if kind == "systemd"),
        environment=tuple(where for kind, where in secrets if kind == "env"),
        user=user,
        grace=desk.configuration.schedule.grace.approximate_seconds,
    )


def _program() -> str:
    own = os.path.abspath(sys.argv[0])
    return own if os.path.basename(own) == "strongroom" else "/usr/bin/strongroom"


def _secrets(value: Any) -> Iterator[Secret]:
    """Every reference to a secret in a configuration."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, Struct):
        for each in fields(value):
            yield from _secrets(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _secrets(inner)
