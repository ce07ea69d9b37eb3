"""Channels against real servers on this machine: SMTP by aiosmtpd, HTTP by the standard library."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from observe.servers import Web
from strongroom.errors import ConfigError
from strongroom.observe.channels.base import NotTold
from strongroom.observe.channels.other import AppriseChannel
from strongroom.observe.channels.smtp import SmtpChannel
from strongroom.observe.channels.web import PagerDutyChannel, Ping, SlackChannel
from strongroom.rules.anomalies import Condition
from strongroom.rules.messages import Message, Word, compose, digest

AT = datetime(2026, 11, 26, 3, 5, 7, tzinfo=UTC)
WRONG = Condition(
    "backup-failed",
    "db",
    "critical",
    "The backup of db failed.",
    ("no space left\r\nBcc: everybody@example.com", "2 in a row <!channel> ```"),
    "Run `strongroom backup db` by hand.",
)
SECRET = "T000/B000/canary-7f3a"


def message(word: Word = "raise") -> Message:
    return compose(
        word, WRONG, at=AT, since=AT - timedelta(hours=1), host="h1", repository="s3://b/p"
    )


# -- SMTP --------------------------------------------------------------------------------------


class Mailbox:
    """Keeps what is delivered; refuses whom it is told to."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.refuse: set[str] = set()
        self.answer = "250 OK"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refuse:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.answer.startswith("250"):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.mails.append((envelope.rcpt_tos, mail, session.ssl is not None))
        return self.answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine, signed by itself, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    alternative = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def smtp(mailbox: Mailbox) -> Iterator[Callable[..., Controller]]:
    running: list[Controller] = []

    def start(**how: Any) -> Controller:
        # Controller does not learn which port it was given, so that it must be told one.
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        controller = Controller(mailbox, hostname="127.0.0.1", port=port, **how)
        controller.start()
        running.append(controller)
        return controller

    yield start
    for controller in running:
        if controller.loop.is_running():
            controller.stop()


def mail_by(controller: Controller, **how: Any) -> SmtpChannel:
    facts = {"tls": "none", "sender": "backup@example.com", "to": ["a@example.com"]} | how
    return SmtpChannel("mail", host="127.0.0.1", port=controller.port, **facts)  # type: ignore[arg-type]


def test_a_mail_arrives_with_what_is_wrong(smtp: Any, mailbox: Mailbox) -> None:
    mail_by(smtp(), to=["a@example.com", "b@example.com"]).send(message())
    ((recipients, mail, _),) = mailbox.mails
    assert recipients == ["a@example.com", "b@example.com"]
    assert mail["Subject"] == "[strongroom] The backup of db failed."
    assert mail["Bcc"] is None  # what a server said is text, and no header
    assert mail["Importance"] == "high" and mail["Auto-Submitted"] == "auto-generated"
    body = mail.get_content()
    assert "why:   no space left  Bcc: everybody@example.com" in body
    assert "to do: Run `strongroom backup db` by hand." in body
    assert "2026-11-26T03:05:07Z" in body and "h1" in body


def test_mails_about_one_thing_are_one_thread(smtp: Any, mailbox: Mailbox) -> None:
    channel = mail_by(smtp())
    for word in ("raise", "remind", "resolve"):
        channel.send(message(word))  # type: ignore[arg-type]
    mails = [mail for _, mail, _ in mailbox.mails]
    assert len({mail["References"] for mail in mails}) == 1
    assert [mail["Subject"].split("] ")[1].split(":")[0] for mail in mails] == [
        "The backup of db failed.", "Still", "Fixed",
    ]  # fmt: skip
    assert "It was wrong since 2026-11-26T02:05:07Z and is not any more." in mails[2].get_content()


def test_encrypted_and_with_a_password(smtp: Any, mailbox: Mailbox, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    seen: list[bytes] = []

    def authenticate(server: Any, session: Any, envelope: Any, how: str, data: Any) -> AuthResult:
        seen.append(data.password)
        return AuthResult(success=data.password == b"right", handled=False)

    controller = smtp(
        tls_context=context, require_starttls=True, authenticator=authenticate, auth_required=True
    )
    how = {"tls": "starttls", "ca_file": str(certificate), "user": "u"}
    mail_by(controller, password="right", **how).send(message())
    assert [encrypted for _, _, encrypted in mailbox.mails] == [True]
    with pytest.raises(NotTold, match="answered 535") as fault:
        mail_by(controller, password="canary-wrong", **how).send(message())
    assert "canary" not in str(fault.value)
    with pytest.raises(NotTold):  # a certificate that nobody vouched for
        mail_by(controller, password="right", tls="starttls", user="u").send(message())
    assert set(seen) == {b"right", b"canary-wrong"} and len(mailbox.mails) == 1


@pytest.mark.parametrize("wrong", ["recipient", "one of two", "answer", "away", "no starttls"])
def test_a_mail_counts_only_when_it_was_taken_for_all(
    smtp: Any, mailbox: Mailbox, wrong: str
) -> None:
    controller = smtp()
    channel = mail_by(controller, to=["a@example.com", "b@example.com"])
    if wrong == "recipient":
        mailbox.refuse = {"a@example.com", "b@example.com"}
    elif wrong == "one of two":
        mailbox.refuse = {"b@example.com"}
    elif wrong == "answer":
        mailbox.answer = "451 try again"
    elif wrong == "away":
        controller.stop()
    else:
        channel = mail_by(controller, tls="starttls")
    with pytest.raises(NotTold) as fault:
        channel.send(message())
    assert fault.value.what.startswith("mail: ")


# -- HTTP --------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.server.shutdown()
    web.server.server_close()


def test_slack(web: Web) -> None:
    channel = SlackChannel("slack", url=f"{web.url}/services/{SECRET}")
    channel.send(message())
    ((_, path, body),) = web.asked
    assert path == f"/services/{SECRET}"
    assert body["text"].startswith(":rotating_light: *[strongroom]") is False
    assert body["text"].startswith(":rotating_light: *The backup of db failed.*")
    assert "<!channel>" not in body["text"] and "&lt;!channel&gt; '''" in body["text"]
    channel.send(message("resolve"))
    assert web.asked[1][2]["text"].startswith(":white_check_mark: *Fixed: ")


def test_pagerduty_has_one_incident_from_beginning_to_end(web: Web) -> None:
    web.status, web.answer = 202, b'{"status":"success"}'
    channel = PagerDutyChannel("pager", routing_key="R" * 32, url=f"{web.url}/v2/enqueue")
    for word in ("raise", "remind", "resolve"):
        channel.send(message(word))  # type: ignore[arg-type]
    events = [body for _, _, body in web.asked]
    assert [event["event_action"] for event in events] == ["trigger", "trigger", "resolve"]
    assert {event["dedup_key"] for event in events} == {"strongroom/h1/backup-failed/db"}
    payload = events[0]["payload"]
    assert payload["severity"] == "critical" and payload["source"] == "h1"
    assert payload["component"] == "db" and payload["class"] == "backup-failed"
    channel.send(message("test"))  # and leaves no incident behind
    assert [body["event_action"] for _, _, body in web.asked[3:]] == ["trigger", "resolve"]


def test_a_dead_mans_ping(web: Web) -> None:
    Ping("deadman", url=f"{web.url}/{SECRET}").ping()
    assert web.asked == [("GET", f"/{SECRET}", None)]


@pytest.mark.parametrize("status", [302, 400, 403, 404, 429, 500, 503])
def test_what_is_not_taken_is_not_told_and_no_secret_gets_out(web: Web, status: int) -> None:
    web.status, web.answer, web.headers = status, b"no\r\n\x1b[31m", {"Location": web.url + "/else"}
    channels = [
        SlackChannel("slack", url=f"{web.url}/{SECRET}").send,
        PagerDutyChannel("pager", routing_key=SECRET, url=web.url).send,
        lambda _: Ping("deadman", url=f"{web.url}/{SECRET}").ping(),
    ]
    for send in channels:
        with pytest.raises(NotTold) as fault:
            send(message())
        assert str(status) in fault.value.what and "canary" not in fault.value.what
        assert "\x1b" not in fault.value.what
    assert all(path != "/else" for _, path, _ in web.asked)


def test_a_green_answer_that_is_not_slacks_is_not_enough(web: Web) -> None:
    web.answer = b"<html>Sign in to the wireless network</html>"
    with pytest.raises(NotTold):
        SlackChannel("slack", url=f"{web.url}/{SECRET}").send(message())
    web.answer = b"accepted?"
    with pytest.raises(NotTold):
        PagerDutyChannel("pager", routing_key=SECRET, url=web.url).send(message())


def test_nobody_there(web: Web) -> None:
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(NotTold, match=r"slack: 127\.0\.0\.1:"):
        SlackChannel("slack", url=f"{web.url}/{SECRET}").send(message())


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://x", "file:///etc/passwd", "https://"]
)
def test_only_encrypted_addresses(url: str) -> None:
    with pytest.raises(ConfigError):
        SlackChannel("slack", url=url)


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # Apprise imports it
def test_apprise_tells_by_any_of_its_ways(web: Web) -> None:
    host, port = web.url.removeprefix("http://").split(":")
    AppriseChannel("other", url=f"json://{host}:{port}/{SECRET}").send(message())
    ((_, _, body),) = web.asked
    assert body["title"] == "[strongroom] The backup of db failed." and body["type"] == "failure"
    web.status = 500
    with pytest.raises(NotTold, match=r"^other: "):
        AppriseChannel("other", url=f"json://{host}:{port}/{SECRET}").send(message())
    with pytest.raises(ConfigError) as fault:
        AppriseChannel("other", url=f"nonsense://{SECRET}")
    assert "canary" not in fault.value.what


# -- words -------------------------------------------------------------------------------------


def test_several_things_at_once_are_one_message() -> None:
    one = digest([message(), message("resolve")], at=AT, host="h1")
    assert one.subject == "[strongroom] 1 wrong, 1 fixed on h1"
    assert one.text.count("backup-failed/db, critical, h1, s3://b/p") == 2
    assert digest([message()], at=AT, host="h1") == message()
    both = digest([message("resolve")] * 2, at=AT, host="h1")
    assert (both.word, both.subject) == ("resolve", "[strongroom] 2 fixed on h1")
