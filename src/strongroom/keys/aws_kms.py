"""Opening by a key of AWS KMS: a data key of KMS, HKDF-SHA256, AES-256-GCM.

    parameters   key      the ARN of the KMS key that wrapped
                 salt     32 fresh bytes, base64
                 wrapped  the data key as KMS encrypted it (CiphertextBlob), base64
    kek          HKDF-SHA256(data key 32, salt, "strongroom aws kms 1")
    body         as every holder's (keys/envelope.py)

KMS binds the data key to an encryption context: the SHA-256 of what the slot binds, and, where that
is a key slot's, repository, epoch, role and label in plain, so that policies and CloudTrail can
name them. The id that is configured is given with every Decrypt and the answer's ARN compared with
the slot's: another key is refused even if KMS would open it. KMS never sees the key material.

Retries and waits are bounded. KMS out of reach is Unreachable (7); a key that is disabled, gone,
another or not allowed is KeyRefused (8). boto3 is imported here and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.errors import ConfigError, KeyRefused, StrongroomError, Unreachable
from strongroom.keys.base import DataKey, Stanza
from strongroom.keys.envelope import (
    SALT,
    Random,
    check_form,
    encode_salt,
    open_stanza,
    read_salt,
    seal,
)

KIND = "aws-kms"
_LABEL = b"strongroom aws kms 1"
_SLOT = b"strongroom key slot 1\n"
_LIMIT = 6144  # KMS's own limit of a CiphertextBlob
_REFUSAL = "The KMS key does not open the key slot."
_REFUSAL_ARTEFACT = "The KMS key does not open the wrapped key of the artefact."


class AwsKmsHolder:
    """Whoever may use the KMS key `key_id`: an id, ARN, `alias/NAME` or alias ARN.

    `connect_seconds`, `read_seconds` and `attempts` bound what a KMS that does not answer costs.
    """

    kind = KIND

    def __init__(
        self,
        key_id: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        random: Random = os.urandom,
        connect_seconds: float = 5.0,
        read_seconds: float = 15.0,
        attempts: int = 3,
    ) -> None:
        if not key_id.strip() or not key_id.isprintable():
            raise ConfigError("The id of the KMS key is empty or has an odd character.")
        self.key_id = key_id
        self._random = random
        self._endpoint, self._region = endpoint, region or _region_of(key_id)
        self._keys = (access_key_id, secret_access_key, session_token)
        self._bounds = (connect_seconds, read_seconds, attempts)
        self._made: Any = None

    def __repr__(self) -> str:
        return f"AwsKmsHolder({self.key_id!r})"

    # -- a holder --------------------------------------------------------------------------

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        """Wrap `material` under a fresh data key of KMS."""
        key, arn, wrapped = self._generate(_slot_context(context))
        salt = self._random(SALT)
        parameters: dict[str, str | int] = {
            "key": arn,
            "salt": encode_salt(salt),
            "wrapped": base64.b64encode(wrapped).decode(),
        }
        return seal(
            _derive(key, salt),
            material,
            kind=KIND,
            parameters=parameters,
            context=context,
            random=self._random,
        )

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        """Return the material; KeyRefused when it was wrapped for another key or context."""
        check_form(stanza, KIND, {"key", "salt", "wrapped"})
        salt, arn = read_salt(stanza), stanza.parameters["key"]
        wrapped = _read_wrapped(stanza.parameters["wrapped"])
        if not isinstance(arn, str) or not arn.isascii() or not arn.isprintable():
            raise KeyRefused("The key slot does not name a KMS key.")
        key = self._decrypt(wrapped, _slot_context(context), arn)
        return open_stanza(_derive(key, salt), stanza, context=context, refusal=_REFUSAL)

    # -- keys of artefacts -----------------------------------------------------------------

    def generate_data_key(self, context: Mapping[str, str]) -> DataKey:
        """A new key of 32 bytes; `wrapped` is KMS's CiphertextBlob as it is, so that
        `aws kms decrypt` opens it. `context` is KMS's encryption context."""
        key, arn, wrapped = self._generate(context)
        return DataKey(key, wrapped, arn)

    def unwrap_data_key(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The key of a CiphertextBlob; KeyRefused when KMS key, context or blob is another."""
        if not 0 < len(wrapped) <= _LIMIT:
            raise KeyRefused("The wrapped key of the artefact is damaged or is none of KMS.")
        try:
            return self._decrypt(wrapped, context, None, refusal=_REFUSAL_ARTEFACT)
        except (KeyRefused, Unreachable) as fault:
            fault.means = "Nothing was written; the artefact stays closed until its key is there."
            fault.do += (
                " Without KMS: --artefact-key FILE, or the repository that made the artefact."
            )
            raise

    def describe(self) -> dict[str, str]:
        """ARN, state, origin and rotation-relevant facts of the key, for `doctor`."""
        found = self._call("describe", lambda kms: kms.describe_key(KeyId=self.key_id))
        facts = found["KeyMetadata"]
        return {
            "arn": str(facts.get("Arn", "")),
            "state": str(facts.get("KeyState", "")),
            "usage": str(facts.get("KeyUsage", "")),
            "spec": str(facts.get("KeySpec", "")),
        }

    # -- KMS -------------------------------------------------------------------------------

    def _generate(self, context: Mapping[str, str]) -> tuple[bytes, str, bytes]:
        answer = self._call(
            "wrap with",
            lambda kms: kms.generate_data_key(
                KeyId=self.key_id, KeySpec="AES_256", EncryptionContext=dict(context)
            ),
        )
        key, wrapped = bytes(answer["Plaintext"]), bytes(answer["CiphertextBlob"])
        if len(key) != 32 or not 0 < len(wrapped) <= _LIMIT:
            raise KeyRefused("KMS answered with what is no data key of 256 bits.")
        return key, str(answer["KeyId"]), wrapped

    def _decrypt(
        self,
        wrapped: bytes,
        context: Mapping[str, str],
        arn: str | None,
        *,
        refusal: str = _REFUSAL,
    ) -> bytes:
        answer = self._call(
            "open with",
            lambda kms: kms.decrypt(
                CiphertextBlob=wrapped, KeyId=self.key_id, EncryptionContext=dict(context)
            ),
            refusal,
        )
        key = bytes(answer["Plaintext"])
        other = arn is not None and not _same_key(str(answer.get("KeyId")), arn)
        if other or len(key) != 32:
            raise KeyRefused(refusal + " It was wrapped by another key.")
        return key

    def _call(self, verb: str, ask: Callable[[Any], Any], refusal: str = _REFUSAL) -> Any:
        """Ask KMS, and translate what goes wrong, once."""
        try:
            from botocore import exceptions  # noqa: PLC0415
        except ImportError:
            raise _no_boto3() from None
        try:
            return ask(self._client())
        except (exceptions.BotoCoreError, exceptions.ClientError) as fault:
            raise self._translated(verb, fault, exceptions, refusal) from None

    def _client(self) -> Any:
        if self._made is None:
            try:
                import boto3  # noqa: PLC0415
                from botocore.config import Config  # noqa: PLC0415
            except ImportError:
                raise _no_boto3() from None
            connect, read, attempts = self._bounds
            key, secret, token = self._keys
            # A session of its own: the default one is not made for threads.
            self._made = boto3.session.Session().client(
                "kms",
                region_name=self._region,
                endpoint_url=self._endpoint,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                aws_session_token=token,
                config=Config(
                    connect_timeout=connect,
                    read_timeout=read,
                    retries={"total_max_attempts": attempts, "mode": "standard"},
                    ignore_configured_endpoint_urls=self._endpoint is not None,
                ),
            )
        return self._made

    def _translated(self, verb: str, fault: Any, exceptions: Any, refusal: str) -> StrongroomError:
        where = f"the KMS key {self.key_id}"
        if isinstance(fault, exceptions.ClientError):
            error = fault.response.get("Error", {})
            status = fault.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _of_answer(str(error.get("Code", "")), int(status), verb, where, refusal)
        if isinstance(fault, (exceptions.NoRegionError,)):
            return ConfigError(
                f"No region is known for {where}.",
                do="Write the whole ARN, or `kms_region` under [repository], or set AWS_DEFAULT_REGION.",
            )
        absent = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
            exceptions.ProfileNotFound,
            exceptions.SSOError,
        )
        if isinstance(fault, absent):
            return KeyRefused(
                f"There are no credentials of AWS to {verb} {where}.",
                do="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role; "
                "`aws sts get-caller-identity` shows who you are.",
            )
        if isinstance(fault, (exceptions.HTTPClientError, exceptions.ConnectionError)):
            return Unreachable(
                f"AWS KMS does not answer ({type(fault).__name__}), so that nobody can {verb} "
                f"{where}.",
                means=_MEANS_DOWN,
                do="Check network, region and endpoint, then run the same command again; another "
                "key (passphrase, key file, recovery code) opens the repository without KMS.",
            )
        return KeyRefused(
            f"KMS could not be asked to {verb} {where}: {type(fault).__name__}.",
            do="Check the key id, the region and the configuration of AWS.",
        )


_MEANS_DOWN = "Nothing was changed; what KMS wrapped cannot be opened until it answers again."

# Codes of the KMS API reference, "Common errors" among them.
_DISABLED = frozenset({"DisabledException", "KMSInvalidStateException", "KeyUnavailableException"})
_WRONG = frozenset(
    {
        "InvalidCiphertextException",
        "IncorrectKeyException",
        "InvalidKeyUsageException",
        "InvalidGrantTokenException",
    }
)
_ABSENT = frozenset({"NotFoundException", "InvalidArnException", "InvalidAliasNameException"})
_DENIED = frozenset(
    {
        "AccessDeniedException",
        "AccessDenied",
        "NotAuthorized",
        "OptInRequired",
    }
)
_CREDENTIALS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationTokenException",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "RequestExpired",
        "SignatureDoesNotMatch",
    }
)
_DOWN = frozenset(
    {
        "KMSInternalException",
        "DependencyTimeoutException",
        "ThrottlingException",
        "LimitExceededException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "InternalFailure",
        "RequestLimitExceeded",
    }
)


def _of_answer(code: str, status: int, verb: str, where: str, refusal: str) -> StrongroomError:
    """An error that KMS itself answered with; its own text is left out: it may name much."""
    if code in _DISABLED:
        return KeyRefused(
            f"To {verb} {where} is refused: it is disabled or waits for its deletion ({code}).",
            do="Enable it (`aws kms enable-key`) or cancel its deletion "
            "(`aws kms cancel-key-deletion`), or open with another key.",
        )
    if code in _WRONG:
        return KeyRefused(
            f"{refusal} ({code})",
            do="Name the KMS key that `strongroom key list` shows, or open with another key.",
        )
    if code in _ABSENT:
        return KeyRefused(
            f"There is no key for {where} in this account and region, so it does not open "
            f"anything ({code}).",
            do="Check `kms_key` and the region; `aws kms list-aliases` shows what there is.",
        )
    if code in _CREDENTIALS:
        return KeyRefused(
            f"AWS refuses the credentials that shall {verb} {where} ({code}).",
            do="Renew them; `aws sts get-caller-identity` shows whether they are good.",
        )
    if code in _DENIED or status in (401, 403):
        return KeyRefused(
            f"Nobody allows these credentials to {verb} {where}, or it does not open this "
            f"({code}).",
            do="Allow kms:GenerateDataKey, kms:Decrypt and kms:DescribeKey on the key, or open "
            "with another key.",
        )
    if code in _DOWN or status >= 500 or status == 429:
        return Unreachable(
            f"AWS KMS answers with a fault of its own ({code or status}) when asked to {verb} "
            f"{where}.",
            means=_MEANS_DOWN,
            do="Wait and run the same command again; another key opens the repository without KMS.",
        )
    return KeyRefused(
        f"KMS refuses to {verb} {where} ({code or status}); it does not open this.",
        do="Check the key id and the configuration of AWS.",
    )


def _slot_context(context: bytes) -> dict[str, str]:
    """The encryption context of what a slot binds."""
    found = {"strongroom": "key slot 1", "sha256": hashlib.sha256(context).hexdigest()}
    if context.startswith(_SLOT):
        bound = json.loads(context.removeprefix(_SLOT))
        found |= {name: str(bound[name]) for name in ("repository", "epoch", "role", "label")}
    return found


def _same_key(one: str, other: str) -> bool:
    """Whether two ARNs are of one key; replicas of a multi-region key are."""
    if "/mrk-" in one:
        one, other = one.rpartition("/")[2], other.rpartition("/")[2]
    return one == other


def _derive(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_LABEL).derive(key)


def _read_wrapped(text: object) -> bytes:
    try:
        wrapped = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        wrapped = b""
    if not 0 < len(wrapped) <= _LIMIT:
        raise KeyRefused("The key slot does not carry a key that KMS wrapped.")
    return wrapped


def _region_of(key_id: str) -> str | None:
    """The region that an ARN names."""
    parts = key_id.split(":")
    return parts[3] or None if len(parts) >= 6 and parts[0] == "arn" else None


def _no_boto3() -> ConfigError:
    return ConfigError(
        "A KMS key is configured, and boto3 is not installed.",
        do='Run `pip install "strongroom[kms]"`.',
    )
