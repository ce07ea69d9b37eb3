"""What the configuration of a remote says about whether it can work: rules over its options.

Pure: options go in, sentences come out; no value of a secret is ever in one.
"""

from __future__ import annotations

from collections.abc import Mapping

_SERVICE = ("service_account_file", "service_account_credentials")
_SHARED = ("team_drive", "impersonate")
_WRAPPERS = ("alias", "crypt", "chunker", "compress", "hasher", "cache")
Options = Mapping[str, str]


def name_of(remote: str) -> str:
    """The configured remote that `name:path` or `name,option=value:path` begins with; "" for
    a backend on the fly."""
    head = remote.partition(":")[0]
    return head.partition(",")[0]


def options_of(remote: str, remotes: Mapping[str, Options], environ: Mapping[str, str]) -> Options:
    """The options of the remote that stores in the end: through wrappers, environment on top."""
    seen: set[str] = set()
    options: dict[str, str] = {}
    while (name := name_of(remote)) not in seen:
        if ":" not in remote:
            return {"type": "local"}
        seen.add(name)
        options = dict(remotes.get(name, {}))
        prefix = f"RCLONE_CONFIG_{name.upper().replace('-', '_')}_"
        for variable, value in environ.items():
            if name and variable.startswith(prefix):
                options[variable.removeprefix(prefix).lower()] = value
        inline = remote.partition(":")[0].split(",")[1:]
        for part in inline:
            option, equals, value = part.partition("=")
            if equals:
                options[option.strip()] = value.strip("\"'")
        if options.get("type") not in _WRAPPERS or not options.get("remote"):
            break
        remote = options["remote"]
    kind = options.get("type", "").upper().replace("-", "_")
    for variable, value in environ.items():  # RCLONE_DRIVE_TEAM_DRIVE and its like
        prefix = f"RCLONE_{kind}_"
        if kind and variable.startswith(prefix):
            options.setdefault(variable.removeprefix(prefix).lower(), value)
    return options


def lacks_storage(options: Options) -> bool:
    """Whether this is a Google Drive that a service account writes to as itself.

    Service accounts have no storage quota of their own: reading what was shared with them works,
    every write ends in storageQuotaExceeded.
    """
    if options.get("type") != "drive":
        return False
    service = any(options.get(name) for name in _SERVICE)
    service = service or options.get("env_auth", "").lower() == "true"
    return service and not any(options.get(name) for name in _SHARED)
