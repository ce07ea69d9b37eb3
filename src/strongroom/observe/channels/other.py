"""Everything else there is, through Apprise (an optional part: `strongroom[notify]`)."""

from __future__ import annotations

from typing import Any

from strongroom.errors import ConfigError
from strongroom.observe.channels.base import NotTold
from strongroom.rules.messages import Message


class AppriseChannel:
    """One address of Apprise, such as mailto://, ntfy://, matrix://; it is a secret."""

    each = False

    def __init__(self, name: str, *, url: str) -> None:
        self.name = name
        try:
            import apprise  # noqa: PLC0415 -- optional
        except ImportError:
            raise ConfigError(
                f"The channel {name} needs Apprise, which is not installed.",
                do="pip install 'strongroom[notify]'",
            ) from None
        self._apprise: Any = apprise.Apprise()
        if not self._apprise.add(url):
            raise ConfigError(
                f"Apprise does not understand the address of {name}.",
                do="Its manual lists the forms: https://github.com/caronc/apprise/wiki.",
            )

    def send(self, message: Message) -> None:
        """Hand it over; NotTold unless Apprise says that the other end took it."""
        kind = "success" if message.word == "resolve" else "info"
        if message.word in ("raise", "remind"):
            kind = "failure" if message.severity == "critical" else "warning"
        try:
            taken = self._apprise.notify(
                body=message.text, title=message.subject, notify_type=kind, interpret_escapes=False
            )
        except Exception as fault:
            raise NotTold(f"{self.name}: {type(fault).__name__}.") from None
        if not taken:
            raise NotTold(f"{self.name}: the other end did not take it.")


__all__ = ["AppriseChannel"]
