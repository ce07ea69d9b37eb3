"""Tell what is to be told, by every channel that wants it, and say who took it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from strongroom.errors import StrongroomError
from strongroom.rules.messages import Message, digest

if TYPE_CHECKING:
    from strongroom.observe.channels.base import Channel
    from strongroom.rules.anomalies import Severity


@dataclass(frozen=True, slots=True)
class Announced:
    """A channel, the least that it is told of, and whether only of what no other took."""

    channel: Channel
    level: Severity
    escalation: bool

    def wants(self, message: Message) -> bool:
        """Whether what is so serious is told here."""
        return message.severity == "critical" or self.level == "warning"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one message by one channel: taken, or why not."""

    channel: str
    key: str
    word: str
    fault: str = ""


def tell(
    messages: Sequence[Message],
    channels: Iterable[Announced],
    *,
    escalated: frozenset[str] = frozenset(),
    at: datetime,
    host: str,
) -> list[Delivery]:
    """Hand every message to every channel that wants it; those of `escalated` to all there are.

    Channels that people read get one message for everything. One that fails hinders no other.
    """
    done: list[Delivery] = []
    for announced in channels:
        wanted = [
            message
            for message in messages
            if message.key in escalated or (announced.wants(message) and not announced.escalation)
        ]
        if not wanted:
            continue
        channel = announced.channel
        parcels = [[one] for one in wanted] if channel.each else [wanted]
        for parcel in parcels:
            fault = ""
            try:
                channel.send(digest(parcel, at=at, host=host))
            except StrongroomError as failed:
                fault = failed.what
            done += [Delivery(channel.name, one.key, one.word, fault) for one in parcel]
    return done


__all__ = ["Announced", "Delivery", "tell"]
