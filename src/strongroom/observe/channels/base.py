"""The promise of a channel, and what it raises."""

from __future__ import annotations

from typing import Protocol

from strongroom.errors import Unreachable
from strongroom.rules.messages import Message

TIMEOUT = 15.0
"""Seconds that a channel waits for each answer."""


class NotTold(Unreachable):
    """A channel did not take a message. `what` never has the channel's secret in it."""

    code = "not-told"
    means = "Nobody was told by this channel; it is tried again, and other channels are told too."
    do = "`strongroom notify test` tries every channel and says what each answers."


class Channel(Protocol):
    """Where messages go. One message for each thing if `each`, else what there is in one."""

    @property
    def name(self) -> str:
        """As it is configured."""

    @property
    def each(self) -> bool:
        """Whether every thing needs its own message, because it is followed by its key."""

    def send(self, message: Message) -> None:
        """Return when the other end has taken it; NotTold when it has not."""


__all__ = ["TIMEOUT", "Channel", "NotTold"]
