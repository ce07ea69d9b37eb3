"""E-mail by SMTP, encrypted unless the server is this machine."""

from __future__ import annotations

import hashlib
import smtplib
import ssl
from collections.abc import Sequence
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Literal

from strongroom.observe.channels.base import TIMEOUT, NotTold
from strongroom.rules.messages import Message

Tls = Literal["starttls", "tls", "none"]


class SmtpChannel:
    """One mail for everything that is to be told now; mails about one thing are one thread."""

    each = False

    def __init__(
        self,
        name: str,
        *,
        host: str,
        port: int,
        tls: Tls,
        sender: str,
        to: Sequence[str],
        user: str | None = None,
        password: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.name = name
        self._host, self._port, self._tls = host, port, tls
        self._sender, self._to = sender, tuple(to)
        self._user, self._password, self._ca = user, password, ca_file

    def send(self, message: Message) -> None:
        """Hand the mail to the server for every recipient; NotTold when it refuses one."""
        mail = self._mail(message)
        try:
            with self._connect() as server:
                if self._user is not None:
                    server.login(self._user, self._password or "")
                refused = server.send_message(mail)
        except smtplib.SMTPRecipientsRefused as fault:
            raise NotTold(f"{self.name}: {self._host} refused {_few(fault.recipients)}.") from None
        except smtplib.SMTPResponseException as fault:
            # Its text may repeat what was sent; the code says enough.
            raise NotTold(f"{self.name}: {self._host} answered {fault.smtp_code}.") from None
        except (OSError, smtplib.SMTPException) as fault:
            raise NotTold(f"{self.name}: {self._host}:{self._port}: {_cause(fault)}.") from None
        if refused:
            raise NotTold(f"{self.name}: {self._host} refused {_few(refused)}.")

    def _connect(self) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=self._ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._tls == "tls":
            return smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT, context=context)
        server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT)
        if self._tls == "starttls":
            try:
                server.starttls(context=context)
            except BaseException:
                server.close()
                raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = message.subject
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._to)
        mail["Date"] = format_datetime(message.at)
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Strongroom-Key"] = message.key
        thread = hashlib.sha256(message.key.encode()).hexdigest()[:24]
        domain = Address(addr_spec=self._sender).domain or "localhost"
        mail["References"] = f"<{thread}@{domain}>"
        if message.severity == "critical" and message.word == "raise":
            mail["Importance"] = "high"
        mail.set_content(message.text)
        return mail


def _few(recipients: object) -> str:
    names = sorted(str(name) for name in recipients)  # type: ignore[attr-defined]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cause(fault: Exception) -> str:
    return (getattr(fault, "strerror", None) or str(fault) or type(fault).__name__).rstrip(".")


__all__ = ["SmtpChannel", "Tls"]
