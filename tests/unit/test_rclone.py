"""What rclone is told and what is made of its answers; no process is run here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strongroom.errors import (
    ConfigError,
    NotFound,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.files.rclone.accounts import lacks_storage, name_of, options_of
from strongroom.files.rclone.source import BATCH_FILES, BATCH_SIZE, LARGE, _cut
from strongroom.files.rclone.tool import (
    Event,
    Item,
    Rclone,
    Result,
    check_remote,
    environment,
    fault_of,
    find_program,
    read_log,
    read_time,
    redact,
)


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("rclone:gdrive:/stakazo/memory_vault/", "gdrive:/stakazo/memory_vault/"),
        ("rclone:gdrive:stakazo", "gdrive:stakazo"),
        ("rclone:gdrive:", "gdrive:"),
        ("rclone::local:/srv/x", ":local:/srv/x"),
        ("rclone:gdrive,shared_with_me=true:x", "gdrive,shared_with_me=true:x"),
        ("rclone:--dash:x", "--dash:x"),
    ],
)
def test_a_remote_is_what_stands_behind_the_prefix(path: str, remote: str) -> None:
    assert check_remote(path) == remote


@pytest.mark.parametrize(
    "path",
    [
        "rclone:",
        "rclone::",
        "rclone:gdrive",
        "/srv",
        "rclone:gdrive:a\nb",
        "rclone::s3,secret_access_key=hunter2:bucket",
        "rclone:gdrive,token={x}:p",
        "rclone::sftp,pass=hunter2,host=h:p",
        "rclone::b2,key=hunter2:p",
    ],
)
def test_what_is_no_remote_or_has_a_secret_in_it_is_refused_without_repeating_it(path: str) -> None:
    with pytest.raises(ValueError) as told:
        check_remote(path)
    assert "hunter2" not in str(told.value)


class Recorder(Rclone):
    """Keeps the command lines; answers nothing."""

    def __init__(self) -> None:
        super().__init__("/bin/rclone", {})
        self.lines: list[list[str]] = []

    def run(self, words: Any, *, timeout: float) -> Result:
        assert timeout > 0
        self.lines.append(self.argv(words))
        return Result(0, b"{}", [])


def test_remotes_stand_behind_a_double_dash_and_nothing_stays_running() -> None:
    rclone = Recorder()
    hostile = "--config=/etc/passwd:x"
    rclone.features(hostile)
    rclone.fetch(hostile, ["a"], "/stage", size=1)
    rclone.send("/stage", hostile, raw=True, size=1)
    rclone.compare("/stage", hostile, raw=False, download=True, size=1)
    rclone.delete(hostile, ["a"])
    rclone.remove_empty(hostile)
    rclone.make_folder(hostile)
    rclone.about(hostile)
    assert len(rclone.lines) == 8
    for line in rclone.lines:
        assert line.index("--") < line.index(hostile)
        assert "--ask-password=false" in line and "--use-json-log" in line
        assert not {"rcd", "serve", "mount", "sync", "purge"} & set(line)


def test_a_copy_is_bounded_in_retries_and_waiting() -> None:
    rclone = Recorder()
    rclone.send("/stage", "r:", raw=False, size=1)
    for flag in ("--contimeout=", "--timeout=", "--retries=", "--low-level-retries="):
        assert any(word.startswith(flag) for word in rclone.lines[0])


def test_what_would_change_an_operation_from_outside_does_not_reach_it() -> None:
    hostile = [
        "RCLONE_DRY_RUN",
        "RCLONE_FILTER_FROM",
        "RCLONE_EXCLUDE",
        "RCLONE_INCLUDE_FROM",
        "RCLONE_FILES_FROM",
        "RCLONE_MAX_AGE",
        "RCLONE_MIN_SIZE",
        "RCLONE_IGNORE_ERRORS",
        "RCLONE_IGNORE_EXISTING",
        "RCLONE_DUMP",
        "RCLONE_LOG_FILE",
        "RCLONE_RC",
        "RCLONE_RC_ADDR",
        "RCLONE_IMMUTABLE",
        "RCLONE_DELETE_EXCLUDED",
        "RCLONE_SIZE_ONLY",
        "RCLONE_INPLACE",
    ]
    wanted = {
        "PATH": "/bin",
        "RCLONE_CONFIG_GDRIVE_TYPE": "drive",
        "RCLONE_DRIVE_TEAM_DRIVE": "x",
        "RCLONE_BWLIMIT": "1M",
        "HTTPS_PROXY": "http://proxy",
    }
    found = environment(
        {**wanted, **dict.fromkeys(hostile, "1")}, config="/c", config_pass="secret"
    )
    assert found == {**wanted, "RCLONE_CONFIG": "/c", "RCLONE_CONFIG_PASS": "secret"}


def test_the_password_of_the_configuration_is_in_no_command_line_and_no_repr() -> None:
    rclone = Rclone("/bin/rclone", {}, config_pass="hunter2")
    assert not any("hunter2" in word for word in rclone.argv(["copy", "--", "a:", "b:"]))
    assert "hunter2" not in repr(rclone)


def test_an_rclone_that_cannot_be_run_is_a_fault_of_the_configuration(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be run"):
        find_program(str(tmp_path / "none"), {})
    (tmp_path / "rclone").write_text("#!/bin/sh\n")
    (tmp_path / "rclone").chmod(0o755)
    assert find_program(None, {"PATH": str(tmp_path)}) == str(tmp_path / "rclone")
    assert find_program(str(tmp_path / "rclone"), {}) == str(tmp_path / "rclone")


# What rclone really says, by backend: message, exit status of rclone → our error.
MESSAGES: list[tuple[str, int, type[StrongroomError]]] = [
    (
        'Failed to create file system for "x:": didn\'t find section in config file ("x")',
        1,
        NotFound,
    ),
    ("error listing: directory not found", 3, NotFound),
    ("Failed to cat: object not found", 4, NotFound),
    (
        'Get "http://127.0.0.1:1/b": dial tcp 127.0.0.1:1: connect: connection refused',
        1,
        StorageUnreachable,
    ),
    (
        'Get "https://www.googleapis.com/drive/v3/files": dial tcp: lookup www.googleapis.com: no '
        "such host",
        1,
        StorageUnreachable,
    ),
    ("googleapi: Error 503: Backend Error, backendError", 5, StorageUnreachable),
    (
        "googleapi: Error 403: User Rate Limit Exceeded, rateLimitExceeded",
        5,
        StorageUnreachable,
    ),
    (
        'couldn\'t list files: Get "https://x": net/http: TLS handshake timeout',
        1,
        StorageUnreachable,
    ),
    (
        "operation error S3: ListObjects, https response error StatusCode: 403, RequestID: 1, "
        "api error AccessDenied: Access Denied.",
        1,
        StorageDenied,
    ),
    (
        "api error InvalidAccessKeyId: The AWS Access Key Id you provided does not exist",
        1,
        StorageDenied,
    ),
    (
        "couldn't fetch token: invalid_grant: maybe token expired? - try refreshing with \"rclone "
        'config reconnect gdrive:"',
        1,
        StorageDenied,
    ),
    (
        "drive: failed when making oauth client: error opening service account credentials file: "
        "open /k.json: no such file or directory",
        1,
        StorageDenied,
    ),
    (
        "googleapi: Error 403: The user does not have sufficient permissions for file x., "
        "insufficientFilePermissions",
        1,
        StorageDenied,
    ),
    (
        "googleapi: Error 403: The user's Drive storage quota has been exceeded., "
        "storageQuotaExceeded",
        7,
        StorageFull,
    ),
    (
        "googleapi: Error 403: Service Accounts do not have storage quota. Leverage shared drives "
        "or use OAuth delegation instead., storageQuotaExceeded",
        7,
        StorageFull,
    ),
    ("write /mnt/x: no space left on device", 1, StorageFull),
    (
        "Failed to load config file: unable to decrypt configuration and not allowed to ask for "
        "password - set RCLONE_CONFIG_PASS to your configuration password",
        1,
        StorageDenied,
    ),
    ("something that nobody has seen", 1, StrongroomError),
]


@pytest.mark.parametrize(("text", "status", "error"), MESSAGES)
def test_what_rclone_says_becomes_an_error_of_ours(
    text: str, status: int, error: type[StrongroomError]
) -> None:
    fault = fault_of(Result(status, b"", [Event("error", text)]), "x:path")
    assert type(fault) is error


def test_a_service_account_without_storage_is_told_the_remedy() -> None:
    text = "googleapi: Error 403: Service Accounts do not have storage quota., storageQuotaExceeded"
    fault = fault_of(Result(7, b"", [Event("error", text)]), "gdrive:x")
    assert "Shared Drive" in fault.do and fault.exit_status == 7


def test_the_log_is_read_as_json_and_as_text() -> None:
    line = json.dumps({"level": "error", "msg": "it failed ", "object": "a/b", "time": "x"})
    assert read_log(f"{line}\n\nplain words\n[1]\n".encode()) == [
        Event("error", "it failed", "a/b"),
        Event("error", "plain words"),
        Event("error", "[1]"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/x",
        "access_token=hunter2&x=1",
        "Authorization: Bearer hunter2",
        '"client_secret":"hunter2"',
        "X-Amz-Signature=hunter2",
        "password: hunter2",
    ],
)
def test_secrets_in_what_rclone_says_are_redacted(text: str) -> None:
    assert "hunter2" not in redact(text)
    fault = fault_of(Result(1, b"", [Event("error", f"Get {text}: connection refused")]), "x:")
    assert "hunter2" not in fault.what + fault.means + fault.do
    assert "connection refused" in fault.what


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T00:00:00.5Z", 5 * 10**8),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2026-11-25T22:13:48.356004535Z", 1795644828356004535),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_times_of_listings(text: str, nanoseconds: int) -> None:
    assert read_time(text) == nanoseconds


def test_what_is_fetched_is_cut_into_bounded_batches_and_streams() -> None:
    items = [Item(f"{n:05}", 1, 0, directory=False) for n in range(BATCH_FILES + 10)]
    odd = [
        Item("large", LARGE, 0, directory=False),
        Item("unknown", -1, 0, directory=False),
        Item("line\nend", 1, 0, directory=False),
    ]
    batches, streams = _cut(items + odd)
    assert [len(batch) for batch in batches] == [BATCH_FILES, 10]
    assert sorted(item.path for item in streams) == ["large", "line\nend", "unknown"]
    big = [Item(f"{n}", LARGE - 1, 0, directory=False) for n in range(10)]
    batches, _ = _cut(big)
    assert all(sum(item.size for item in batch) <= BATCH_SIZE for batch in batches)
    assert sum(map(len, batches)) == 10


# --- accounts ---------------------------------------------------------------------------------

SERVICE = {"type": "drive", "service_account_file": "/k.json"}


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        (SERVICE, True),
        ({"type": "drive", "service_account_credentials": "{}"}, True),
        ({"type": "drive", "env_auth": "true"}, True),
        (SERVICE | {"team_drive": "0AB"}, False),
        (SERVICE | {"impersonate": "a@b.c"}, False),
        (SERVICE | {"team_drive": ""}, True),
        ({"type": "drive", "token": "{}"}, False),
        ({"type": "s3", "service_account_file": "/k.json"}, False),
        ({}, False),
    ],
)
def test_a_service_account_has_no_storage_of_its_own(options: dict[str, str], lacks: bool) -> None:
    assert lacks_storage(options) is lacks


def test_options_are_found_through_wrappers_environment_and_connection_strings() -> None:
    remotes = {
        "vault": {"type": "crypt", "remote": "gdrive:stakazo", "password": "x"},
        "gdrive": SERVICE,
        "loop": {"type": "alias", "remote": "loop:x"},
        "here": {"type": "alias", "remote": "/srv/x"},
    }
    assert lacks_storage(options_of("vault:", remotes, {}))
    assert not lacks_storage(options_of("gdrive,team_drive=0AB:x", remotes, {}))
    assert not lacks_storage(options_of("vault:", remotes, {"RCLONE_DRIVE_TEAM_DRIVE": "0AB"}))
    environ = {"RCLONE_CONFIG_GDRIVE_IMPERSONATE": "a@b.c"}
    assert not lacks_storage(options_of("gdrive:", remotes, environ))
    assert options_of("loop:", remotes, {})["type"] == "alias"
    assert options_of("here:", remotes, {}) == {"type": "local"}
    assert options_of(":local:/x", remotes, {}) == {}
    assert name_of("gdrive,a=b:c") == "gdrive"
