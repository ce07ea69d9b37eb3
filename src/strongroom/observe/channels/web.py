"""Channels that are an HTTP request: Slack, PagerDuty, a dead man's ping.

Addresses of Slack and of pings are secrets: no message of ours repeats them. Redirects are not
followed, answers are read to a limit, and only what the service promises counts as taken.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from strongroom.errors import ConfigError
from strongroom.observe.channels.base import TIMEOUT, NotTold
from strongroom.rules.messages import Message

PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"
_ANSWER = 64 * 1024
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SlackChannel:
    """An incoming webhook: it answers 200 and "ok"."""

    each = False

    def __init__(self, name: str, *, url: str) -> None:
        self.name, self._url = name, check_address(url, name)

    def send(self, message: Message) -> None:
        """Post the text; NotTold unless Slack says that it took it."""
        sign = {"resolve": ":white_check_mark:", "test": ":wave:"}.get(
            message.word, ":rotating_light:" if message.severity == "critical" else ":warning:"
        )
        head, _, rest = message.text.partition("\n")
        text = f"{sign} *{_escaped(head)}*\n```{_escaped(rest.strip())}```"
        status, answer = post(self.name, self._url, {"text": text})
        if status != 200 or answer.strip() != b"ok":
            raise NotTold(f"{self.name}: Slack answered {status} {_shown(answer)}.")


class PagerDutyChannel:
    """Events API v2: an incident for each key, resolved by the same key."""

    each = True

    def __init__(self, name: str, *, routing_key: str, url: str = PAGERDUTY) -> None:
        self.name, self._key, self._url = name, routing_key, check_address(url, name)

    def send(self, message: Message) -> None:
        """Trigger or resolve; NotTold unless the event was accepted (202)."""
        event: dict[str, Any] = {
            "routing_key": self._key,
            "event_action": "resolve" if message.word == "resolve" else "trigger",
            "dedup_key": f"strongroom/{message.host}/{message.key}"[:255],
        }
        if message.word != "resolve":
            event["payload"] = {
                "summary": message.subject[:1024],
                "source": message.host,
                "severity": message.severity,
                "timestamp": message.at.isoformat(),
                "component": message.source or "repository",
                "class": message.key.split("/", 1)[0],
                "custom_details": {"text": message.text},
            }
        status, answer = post(self.name, self._url, event)
        if status != 202:
            raise NotTold(f"{self.name}: PagerDuty answered {status} {_shown(answer)}.")
        if message.word == "test":
            self.send(_ended(message))


class Ping:
    """A dead man's switch: whoever waits for it raises the alarm when it does not come."""

    def __init__(self, name: str, *, url: str) -> None:
        self.name, self._url = name, check_address(url, name)

    def ping(self) -> None:
        """Tell that all is well; NotTold when it was not heard."""
        status, _ = request(self.name, self._url)
        if not 200 <= status < 300:
            raise NotTold(f"{self.name}: the ping was answered with {status}.")


def check_address(url: str, name: str) -> str:
    """The address, if it is https, or http on this machine; ConfigError otherwise."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return url
    raise ConfigError(
        f"The address of {name} is no https address.",
        do="Write https://…; http is spoken with this machine only.",
    )


def post(name: str, url: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
    """Send JSON; return status and the beginning of the answer. NotTold when there is none."""
    return request(name, url, json.dumps(body).encode())


def request(name: str, url: str, data: bytes | None = None) -> tuple[int, bytes]:
    """One request, by verified TLS, without redirects, proxies as the environment says."""
    headers = {"User-Agent": "strongroom"} | ({"Content-Type": "application/json"} if data else {})
    asked = urllib.request.Request(check_address(url, name), data, headers)  # noqa: S310 -- https
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), _NoRedirects()
    )
    try:
        with opener.open(asked, timeout=TIMEOUT) as answer:
            return answer.status, answer.read(_ANSWER)
    except urllib.error.HTTPError as fault:
        with fault:
            return fault.code, fault.read(_ANSWER)
    except urllib.error.URLError as fault:
        cause = getattr(fault.reason, "strerror", None) or type(fault.reason).__name__
        raise NotTold(f"{name}: {asked.host.split('/')[0]}: {cause}.") from None
    except (OSError, http.client.HTTPException, ValueError) as fault:
        cause = getattr(fault, "strerror", None) or type(fault).__name__
        raise NotTold(f"{name}: {asked.host.split('/')[0]}: {cause}.") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **more: Any) -> None:
        """Follow none: the address was chosen, and it may carry a secret."""


def _ended(message: Message) -> Message:
    return Message(
        "resolve",
        message.key,
        message.severity,
        message.source,
        message.subject,
        message.text,
        message.at,
        message.host,
    )


def _escaped(text: str) -> str:
    """Slack's three characters; nothing in a message can become a mention or a link."""
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")
    )


def _shown(answer: bytes) -> str:
    text = answer[:100].decode("utf-8", "replace")
    return repr("".join(char if char.isprintable() else " " for char in text))


__all__ = ["PAGERDUTY", "PagerDutyChannel", "Ping", "SlackChannel", "check_address"]
