"""What an object store's refusals mean, told to a person who has to mend them.

Rule: decided by the store's own error code where it gives one, then by the
HTTP status, then by how the connection broke. Only code and message of the
answer are quoted; the rest may hold a signature or somebody else's page.

"Absent" is only believed when the store itself says so with its own code: a
bare 404 comes from proxies, portals and wrong endpoints too, and taking it
for "no such object" would turn an outage into missing data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.errors import (
    NotFound,
    ObjectMissing,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)

_CODE = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_STATUS = re.compile(r"status code: (\d{3})")
_REGION = re.compile(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'")
_TRIES = re.compile(r"after (\d+) retries")
_REASON = re.compile(r'message: "([^"]{1,200})"|error: "([^"]{1,200})"')

_CERTIFICATE = re.compile(r"\b(UnknownIssuer|Expired|NotValidYet|NotValidForName|\w*EndEntity)\b")

_MISSING = {"NoSuchKey", "BlobNotFound"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_TAKEN = {"PreconditionFailed", "BlobAlreadyExists", "ConditionNotMet"}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
_FULL = {
    "QuotaExceeded",
    "QuotaExceededException",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "InsufficientStorage",
    "StorageFull",
}
_SLOW = {"SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "ServerBusy"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_BAD_KEY = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidSecurity",
    "AuthenticationFailed",
    "UnrecognizedClientException",
}
_REGIONS = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "IncorrectEndpoint",
}
_TRANSIENT_CODES = {"RequestTimeout", "InternalError", "OperationTimedOut"} | _SLOW | _CONFLICT


@dataclass(frozen=True, slots=True)
class Answer:
    """What could be learned from a foreign error: the store's code and message, HTTP status."""

    code: str
    message: str
    status: int
    text: str

    @classmethod
    def read(cls, error: BaseException) -> Answer:
        """Take the error of the client library apart; it carries everything in its text."""
        text = str(error)
        code = _CODE.search(text)
        message = _MESSAGE.search(text)
        status = _STATUS.search(text)
        return cls(
            code=(code[1] or code[2]) if code else "",
            message=message[1].strip() if message else "",
            status=int(status[1]) if status else 0,
            text=text,
        )

    @property
    def taken(self) -> bool:
        """Whether a conditional create was refused because the name exists."""
        if self.code in _CONFLICT:
            return False
        return self.code in _TAKEN or self.status in (304, 409, 412)

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed a little later."""
        if self.code in _FULL or self.status in (501, 507):
            return False
        if self.code in _TRANSIENT_CODES or self.status in (408, 429):
            return True
        if self.status:
            return self.status >= 500
        return "HTTP error" in self.text and not (self.untrusted or self.no_credentials)

    @property
    def stored_nothing(self) -> bool:
        """Whether it is certain that a put had no effect."""
        return self.code in (_SLOW | _CONFLICT) or self.status == 429 or self.refused_connection

    @property
    def past_the_end(self) -> bool:
        """Whether a range began at or after the end of an object that is there."""
        return self.status == 416

    @property
    def refused_connection(self) -> bool:
        """Whether no connection came about, so that no request was sent."""
        return "kind: Connect," in self.text

    @property
    def untrusted(self) -> bool:
        """Whether the server's certificate was not accepted."""
        return not self.status and "certificate" in self.text.casefold()

    @property
    def no_credentials(self) -> bool:
        """Whether credentials were sought from the machine's metadata service, in vain."""
        return any(
            mark in self.text
            for mark in ("latest/api/token", "security-credentials", "service-accounts/default")
        )


def translate(error: BaseException, doing: str, name: str, where: str) -> StrongroomError:
    """Return Strongroom's error. `doing` is a verb ("store"), `where` the store's address."""
    answer = Answer.read(error)
    if answer.code in _MISSING:
        return ObjectMissing(f"{where} holds no object {name}")
    what = f"cannot {doing} {name} at {where}: "
    for rule in (_bucket, _room, _rights, _region, _connection):
        found = rule(answer, what)
        if found is not None:
            return found
    return StorageUnreachable(what + _quote(answer))


def _bucket(answer: Answer, what: str) -> StrongroomError | None:
    if answer.code in _NO_BUCKET:
        return NotFound(
            what + "the bucket does not exist",
            means="Nothing was changed; if the bucket was there before, its backups are gone with "
            "it unless the store can bring it back.",
            do="Correct the bucket in `url` of [repository], or create it with the store's tools; "
            "Strongroom never creates buckets.",
        )
    return None


def _rights(answer: Answer, what: str) -> StrongroomError | None:
    quoted = _quote(answer)
    if answer.code in _SKEWED:
        return StorageDenied(
            f"{what}this machine's clock differs too much from the store's ({answer.code})",
            do="Set the clock (`timedatectl set-ntp true`), then run the same command again.",
        )
    if answer.code in _EXPIRED:
        return StorageDenied(
            f"{what}the credentials have expired ({answer.code})",
            do="Get new temporary credentials (AWS_SESSION_TOKEN goes with them), then run the "
            "same command again; it resumes.",
        )
    if answer.code in _BAD_KEY:
        return StorageDenied(
            f"{what}the credentials are wrong: {quoted}",
            do="Check access key and secret: both belong together, to this store and this account.",
        )
    if answer.no_credentials:
        return StorageDenied(
            what + "no credentials were given, and this machine has none of its own",
            do="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs: GOOGLE_APPLICATION_CREDENTIALS"
            ", az: AZURE_STORAGE_ACCOUNT_NAME and _KEY), or name them in [repository].",
        )
    if answer.status in (401, 403) or answer.code in ("AccessDenied", "AllAccessDisabled"):
        return StorageDenied(
            f"{what}refused: {quoted}",
            do="Allow these credentials to list, get and put below the repository's prefix "
            "(prune also deletes), and look for a bucket policy that denies.",
        )
    return None


def _room(answer: Answer, what: str) -> StrongroomError | None:
    if answer.code in _FULL or answer.status == 507:
        return StorageFull(f"{what}no room: {_quote(answer)}")
    return None


def _region(answer: Answer, what: str) -> StrongroomError | None:
    if answer.code not in _REGIONS and "configured region" not in answer.text:
        return None
    told = _REGION.search(answer.text)
    region = (told[1] or told[2]) if told else ""
    return StorageUnreachable(
        f"{what}the bucket lives in {f'region {region}' if region else 'another region'}",
        do=f'Set `region = "{region or "…"}"` in [repository], or AWS_REGION; with an endpoint of '
        "your own, check that too.",
    )


def _connection(answer: Answer, what: str) -> StrongroomError | None:
    tries = _TRIES.search(answer.text)
    after = f" ({tries[1]} retries)" if tries else ""
    if answer.code in _SLOW or answer.status in (429, 503):
        return StorageUnreachable(
            f"{what}the store is overloaded and kept refusing{after}: {_quote(answer)}",
            do="Run the same command again later; it resumes. If it happens often, run fewer "
            "backups at once or ask for a higher request rate.",
        )
    if answer.code == "NotImplemented" or answer.status in (405, 501):
        return StorageUnreachable(
            f"{what}the store does not know this request: {_quote(answer)}",
            do="If it was a delete, set AWS_DISABLE_BULK_DELETE=true; else check the endpoint.",
        )
    if answer.status == 404:
        return StorageUnreachable(
            f"{what}the answer is 404, but not an object store's",
            do="Check the endpoint: something else than the object store answers there.",
        )
    if answer.untrusted:
        return StorageUnreachable(
            f"{what}the server's certificate is not trusted: {_reason(answer)}",
            do="If the store has a private certificate authority, name its file as `ca_file` in "
            "[repository] or AWS_CA_BUNDLE; else somebody may stand in between.",
        )
    if "HTTP error" in answer.text and not answer.status:
        return StorageUnreachable(f"{what}{_reason(answer)}{after}")
    return None


def _quote(answer: Answer) -> str:
    if answer.code or answer.status:
        told = " ".join(filter(None, (str(answer.status or ""), answer.code)))
        return f"{told} ({answer.message})" if answer.message else told
    return answer.text.split("\n", maxsplit=1)[0][:300]


def _reason(answer: Answer) -> str:
    """Return the innermost reason that the HTTP client gives, such as "Connection refused"."""
    if "kind: Timeout" in answer.text or "TimedOut" in answer.text:
        return "no answer in time"
    found = _REASON.search(answer.text)
    if found:
        return found[1] or found[2]
    inner = _CERTIFICATE.search(answer.text)
    return inner[1] if inner else "the connection broke before an answer came"
