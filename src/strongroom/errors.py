"""Every exception of the program, drawn as one tree.

    StrongroomError
    ├── UsageError            2    nothing started: the words or the configuration are wrong
    │   └── ConfigError
    ├── Incomplete            3    finished, but something was skipped
    ├── Refused               4    a preflight said no; nothing changed
    │   └── AlreadyExists          the name is taken (a put-if-absent that lost)
    ├── NotFound              5    no such source, snapshot, path or time
    │   └── ObjectMissing          a stored object is not there
    ├── Busy                  6    somebody else is at it
    │   └── Overtaken              a prune condemned what this backup relied on; run the source again
    ├── Unreachable           7    database, storage or KMS cannot be reached
    │   ├── StorageUnreachable
    │   ├── StorageFull
    │   │   └── TargetFull         the disk that a restore writes to has no room left
    │   └── DatabaseUnreachable
    ├── KeyRefused            8    credentials or key wrong
    │   └── StorageDenied
    ├── Damaged               9    verification failed
    │   └── WalConflict            other content rests under the name of a WAL file
    └── Interrupted         130    stopped by a signal; resumable

Each carries what happened, what it means for recoverability and what to do
next; `cli.main` alone turns them into four lines and an exit status. Adapters
translate foreign errors once, at the edge. Nobody below `cli` prints or exits.
"""

from __future__ import annotations

from typing import ClassVar


class StrongroomError(Exception):
    """Something went wrong that a person has to know about.

    `what` says what happened; `means` what it means for recoverability; `do`
    the next step, as an exact command where there is one.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1
    means: str = "No snapshot was written by this run; earlier snapshots are untouched."
    do: str = "Run the same command again; if it fails again, run `strongroom check`."

    def __init__(self, what: str, *, means: str | None = None, do: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        if means is not None:
            self.means = means
        if do is not None:
            self.do = do


class UsageError(StrongroomError):
    """The command line cannot be carried out as written."""

    code = "usage"
    exit_status = 2
    means = "Nothing was started and nothing changed."
    do = "Correct the command; `strongroom --help` lists the words."


class ConfigError(UsageError):
    """The configuration file is wrong, or a reference in it leads nowhere."""

    code = "config"
    do = "Correct the configuration; `strongroom config check` names every fault in it."


class Incomplete(StrongroomError):
    """The work finished but some of the source was skipped or some metadata not set."""

    code = "incomplete"
    exit_status = 3
    means = "Everything else is safe; the parts named above are not in this result."
    do = "Mend the named parts (permissions, vanished files) and run the command again."


class Refused(StrongroomError):
    """A preflight said no before anything was changed."""

    code = "refused"
    exit_status = 4
    means = "Nothing was changed."
    do = "Read the reason above and decide; no flag is assumed for you."


class AlreadyExists(Refused):
    """An object of that name exists already (put-if-absent lost)."""

    code = "already-exists"


class NotFound(StrongroomError):
    """No such source, snapshot, path or recoverable time."""

    code = "not-found"
    exit_status = 5
    means = "Nothing was changed."
    do = "`strongroom list` shows what is there."


class ObjectMissing(NotFound):
    """A stored object is not in the storage. `what` is a sentence that ends with its name."""

    code = "object-missing"
    means = "A snapshot that relies on it may not restore until it is brought back."
    do = "`strongroom check` names the snapshots and files that are affected."


class Busy(StrongroomError):
    """Somebody else holds what this command needs."""

    code = "busy"
    exit_status = 6
    do = "Wait for the other run to end, then run the same command again."


class Overtaken(Busy):
    """A prune condemned packs that this run relied on before the run could commit."""

    code = "overtaken"
    means = "No snapshot was written by this run; what it uploaded is kept and will be used again."
    do = "Run the same command again; it resumes."


class Unreachable(StrongroomError):
    """A database, a storage or a key service cannot be reached."""

    code = "unreachable"
    exit_status = 7
    do = "Check network, name and port, then run the same command again; it resumes."


class StorageUnreachable(Unreachable):
    """The storage does not answer, or answers with faults for longer than we retry."""

    code = "storage-unreachable"


class StorageFull(Unreachable):
    """The storage has no room left."""

    code = "storage-full"
    do = "Free space or raise the quota, then run the same command again; it resumes."


class TargetFull(StorageFull):
    """The file system that a restore writes to has no room left."""

    code = "target-full"
    means = "The restore is not complete; the repository is untouched."
    do = "Free space at the target, or choose another, and run the restore again."


class DatabaseUnreachable(Unreachable):
    """PostgreSQL does not answer or refuses the connection."""

    code = "database-unreachable"
    do = "`strongroom source test SOURCE` tries the connection step by step."


class KeyRefused(StrongroomError):
    """No holder given opens the repository: wrong passphrase, wrong key file, or no right."""

    code = "key-refused"
    exit_status = 8
    means = "The repository is untouched; without a key nothing in it can be read."
    do = "Check the passphrase or key file; the recovery kit printed at `init` is a second way in."


class StorageDenied(KeyRefused):
    """The storage refused the credentials or the right to do this."""

    code = "storage-denied"
    means = "The repository is untouched by this command."
    do = "Check the credentials, their expiry and their rights on the bucket or directory."


class Damaged(StrongroomError):
    """Stored bytes are not what was written. Nothing that failed verification was delivered."""

    code = "damaged"
    exit_status = 9
    means = "The parts named above do not restore; nothing wrong was delivered in their place."
    do = "`strongroom check --read-data` names every snapshot and file that is affected."


class WalConflict(Damaged):
    """A WAL file with other content rests under this name already; nothing was overwritten."""

    code = "wal-conflict"
    means = (
        "What was archived first is untouched; the server keeps its own file. Two servers write the"
        " same timeline, or one of the two contents is damaged."
    )
    do = (
        "Find the second server (a copy that was started with archiving on, an old primary) and"
        " stop it; `strongroom wal status SOURCE` lists every conflict."
    )


class Interrupted(StrongroomError):
    """Stopped by SIGINT (130) or SIGTERM (143); what was uploaded will be used again."""

    code = "interrupted"
    exit_status = 130
    means = "No snapshot was written by this run; what it uploaded is kept and will be used again."
    do = "Run the same command again; it resumes."
