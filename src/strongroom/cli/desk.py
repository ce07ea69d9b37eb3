"""What a verb has at hand: flags, configuration, repository, output, clock.

Things are made when they are asked for, so that `strongroom config check` needs
no repository and `strongroom list` no source. Questions are asked on a terminal
only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from strongroom import wiring
from strongroom.cli.flags import Everywhere
from strongroom.cli.output import Output, latest
from strongroom.config.loading import Loaded, Override, load
from strongroom.config.model import Configuration, SourceTable
from strongroom.errors import KeyRefused, NotFound, UsageError
from strongroom.rules.times import read_time, show_time

if TYPE_CHECKING:
    from strongroom.format.run import Run, Trigger, Type
    from strongroom.keys.base import KeyHolder
    from strongroom.operations.recording import Draft, Recorder
    from strongroom.repository.repository import Repository
    from strongroom.storage.base import Storage

_SECRET_FLAGS = {
    "passphrase_file": ("passphrase", "--passphrase-file"),
    "recovery_code_file": ("recovery_code", "--recovery-code-file"),
}


class Desk:
    """One command's surroundings."""

    def __init__(self, flags: Everywhere) -> None:
        self.flags = flags
        self.environ = dict(os.environ)
        self.output = Output(json=flags.json, quiet=flags.quiet, verbosity=flags.verbose)
        self.output.clean = self.clean
        if "json" in (flags.log_format, self.environ.get("STRONGROOM_LOG_FORMAT")):
            self.output.log = "json"  # before there is a configuration to say so
        latest(self.output)
        self.trigger: Trigger = "manual"
        self._secrets: list[str] | None = None
        self._opened: Repository | None = None
        self._ended: set[str] = set()  # runs of this command that were recorded

    # -- configuration ---------------------------------------------------------------------

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration with its origins; ConfigFaults when it is wrong."""
        flags = self.flags
        overrides = [
            Override(("repository", key), f"file:{getattr(flags, name)}", flag)
            for name, (key, flag) in _SECRET_FLAGS.items()
            if getattr(flags, name) is not None
        ]
        for value, key, flag in (
            (flags.repository, ("repository", "url"), "--repository"),
            (flags.key_file, ("repository", "key_file"), "--key-file"),
            (flags.cache_dir, ("cache_dir",), "--cache-dir"),
            (flags.jobs, ("jobs",), "--jobs"),
            (flags.log_format, ("log", "format"), "--log-format"),
        ):
            if value is not None:
                overrides.append(Override(key, value, flag))
        loaded = load(config=flags.config, overrides=tuple(overrides), environ=self.environ)
        self.output.log = loaded.configuration.log.format
        return loaded

    @property
    def configuration(self) -> Configuration:
        """The configuration."""
        return self.loaded.configuration

    def source_table(self, name: str) -> SourceTable:
        """The configured source of that name; NotFound with what there is."""
        table = self.configuration.source.get(name)
        if table is None:
            known = ", ".join(self.configuration.source) or "none"
            place = self.loaded.path or "no configuration file was found"
            raise NotFound(
                f"No source is called {name!r}; configured: {known} ({place}).",
                do="Name one of these, or add it to strongroom.toml as [source.NAME].",
            )
        return table

    @cached_property
    def cache_dir(self) -> str:
        """Where caches are kept."""
        base = self.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return self.configuration.cache_dir or os.path.join(base, "strongroom")

    @cached_property
    def state_dir(self) -> str:
        """Where the journal is kept, what is not in the audit log yet, and spools: what is configured,
        else what systemd names, else ~/.local/state."""
        if self.configuration.state_dir:
            return self.configuration.state_dir
        if (given := self.environ.get("STATE_DIRECTORY")) is not None:
            return given.split(":")[0]
        base = self.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return os.path.join(base, "strongroom")

    # -- time ------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The wall clock."""
        return wiring.now()

    @cached_property
    def zone(self) -> tzinfo:
        """The zone in which a bare clock time is meant: configured, else this machine's."""
        name = self.configuration.timezone or self.environ.get("TZ")
        if name:
            try:
                return ZoneInfo(name.lstrip(":"))
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise UsageError(
                    f"{name!r} is no time zone known here.",
                    do="Write it like Europe/Madrid, in `timezone` or $TZ.",
                ) from None
        try:
            with open("/etc/localtime", "rb") as file:
                return ZoneInfo.from_file(file, key="local time")
        except (OSError, ValueError):
            return UTC

    def moment(self, text: str) -> datetime:
        """Read a time a person gave, and echo it in UTC where it was given otherwise."""
        moment = read_time(text, now=self.now, zone=self.zone)
        if show_time(moment) != text:
            self.output.note(f"{text} is {show_time(moment)}")
        return moment

    # -- repository ------------------------------------------------------------------------

    @cached_property
    def storage(self) -> Storage:
        """The storage that is named; nothing is contacted yet."""
        return wiring.open_storage(self.configuration, self.environ)

    def holders(self) -> list[KeyHolder]:
        """Every way in that is named; asks for the passphrase on a terminal when none is."""
        found = wiring.holders(self.configuration, self.environ)
        if found:
            return found
        if not self.may_ask():
            raise KeyRefused(
                "No key is given.",
                do="Set STRONGROOM_PASSPHRASE, or give --passphrase-file, --key-file or "
                "--recovery-code-file, or name one under [repository] in strongroom.toml.",
            )
        return [wiring.passphrase_holder(ask_secret("Passphrase: "))]

    @contextmanager
    def repository(self, holders: Sequence[KeyHolder] = ()) -> Iterator[Repository]:
        """The open repository, closed when the block ends; opened by these holders alone, if any."""
        repository = wiring.open_repository(
            self.storage,
            holders or self.holders(),
            jobs=self.jobs,
            reopen_every=self.configuration.reopen_every,
        )
        if self._recorder is not None and self._recorder.running:
            self._recorder.opened(repository)
            self._opened = repository
            yield repository  # closed when it is recorded what came of it
            return
        try:
            yield repository
        finally:
            self.storage.close()

    # -- what is told of it ----------------------------------------------------------------

    _recorder: Recorder | None = None

    def clean(self, text: str) -> str:
        """A text without any secret that this command knows."""
        from strongroom.cli.recording import (  # noqa: PLC0415
            in_environment,
            secrets_of,
            without_secrets,
        )

        if self._secrets is None and "loaded" in self.__dict__:  # never the reason to load it
            self._secrets = secrets_of(self)
        known = in_environment(self.environ) if self._secrets is None else self._secrets
        return without_secrets(text, known)

    @property
    def recorder(self) -> Recorder:
        """What records the runs of this command."""
        if self._recorder is None:
            from strongroom.cli.recording import recorder_of  # noqa: PLC0415

            self._recorder = recorder_of(self)
        return self._recorder

    @contextmanager
    def recorded(
        self, type: Type, *, source: str = "", what: str = "", trigger: Trigger | None = None
    ) -> Iterator[Draft]:
        """Record what happens within in the audit log, and what `Output.finish` ends it with.

        A repository that is opened within is closed when its last recording ends. Without one that
        is named, nothing is recorded.
        """
        from strongroom.operations.recording import Draft  # noqa: PLC0415

        if self.configuration.repository.url is None:
            yield Draft()
            return
        outermost = not self.recorder.running
        draft = Draft()
        try:
            with (
                self.recorder.recorded(type, source=source, what=what, trigger=trigger) as draft,
                self.output.about(type=type, source=source, run=draft.id),
            ):
                self.output.record("begin", draft.what, {"trigger": trigger or self.trigger})
                yield draft
                if draft.fault is None:
                    draft.fault = self.output.fault
        finally:
            if draft.id not in self._ended:  # nothing was done, or it has runs of its own
                with self.output.about(type=type, source=source, run=draft.id):
                    self.output.record("end", draft.what, {"outcome": "nothing"})
            if outermost:
                if self._ended and self._opened is not None:
                    from strongroom.cli.measuring import measured  # noqa: PLC0415

                    measured(self, self._opened)
                self.storage.close()

    def ended(self, run: Run) -> None:
        """A run was recorded: log what came of it."""
        self._ended.add(run.run)
        names = ("source", "trigger", "outcome", "exit", "code", "snapshot", "files", "size")
        facts = {name: getattr(run, name) for name in (*names, "new_size", "stored", "problems")}
        facts["seconds"] = round((run.ended - run.started).total_seconds(), 3)
        with self.output.about(type=run.type, run=run.run):
            self.output.record("end", run.what, facts)

    @property
    def jobs(self) -> int | None:
        """How much is done side by side, where it was said."""
        return self.configuration.jobs

    # -- questions -------------------------------------------------------------------------

    def may_ask(self) -> bool:
        """Whether there is a person: a terminal at both ends, and no --json."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.flags.json


def ask(question: str) -> str:
    """Ask on the terminal; "" at its end."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")


def ask_secret(question: str) -> bytes:
    """Ask without showing what is typed."""
    from getpass import getpass  # noqa: PLC0415

    try:
        typed = getpass(question, stream=sys.stderr)
    except EOFError:
        typed = ""
    if not typed:
        raise UsageError("No passphrase was typed.", do="Run the command again and type it.")
    return os.fsencode(typed)


def ask_new_secret() -> bytes:
    """Ask for a new passphrase, twice."""
    first = ask_secret("New passphrase: ")
    if ask_secret("The same again: ") != first:
        raise UsageError("The two passphrases differ.", do="Run the command again.")
    return first
