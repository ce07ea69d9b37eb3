"""A cloud folder as a Sink: staged in bounded batches, copied, and compared with what arrived.

Each batch is written into a private staging folder from verified chunks, sent by `rclone copy`
(which deletes nothing) and held against the remote by `rclone check`: by size and a hash that both
sides have, else by reading everything back. What looks the same there is not sent again, so that a
restore that was cut off goes on where it was; where the comparison finds it different, it is. Only
when all of it is there and the same does `replace` delete what the backup does not have; a
restore that ended early has deleted nothing.

Remotes hold files, folders and times. Symlinks and devices are Problems; modes, owners and
attributes are said to be left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from strongroom.errors import (
    Damaged,
    NotFound,
    Refused,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
    TargetFull,
    Unreachable,
)
from strongroom.files.noting import Noted
from strongroom.files.rclone.source import BATCH_FILES, BATCH_SIZE
from strongroom.files.rclone.staging import Staging
from strongroom.files.rclone.tool import (
    PREFIX,
    Event,
    Features,
    Item,
    Rclone,
    Result,
    fault_of,
    join,
    shown,
)
from strongroom.files.restoring import fault_of_path
from strongroom.format.tree import Entry, Kind
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome, Problem, SnapshotReader

_CONTENT = (Kind.FILE, Kind.STREAM, Kind.HARDLINK)
_COMPARED = ("md5", "sha1", "sha256", "sha512", "blake3", "crc32", "quickxor", "dropbox")
_NAMED = 20
_FIRST = 5
_DELETED = 1000


class RcloneSink:
    """The folder `remote`; see `ports.Sink`.

    `force` writes into one that is not empty; `replace` deletes besides what the backup does not
    have. `staging` is where batches are staged.
    """

    def __init__(
        self,
        remote: str,
        rclone: Rclone,
        *,
        paths: Sequence[bytes] = (),
        force: bool = False,
        replace: bool = False,
        staging: str | None = None,
    ) -> None:
        self._remote, self._rclone = remote, rclone
        self._paths = tuple(sorted({path.strip(b"/") for path in paths} - {b""}))
        self._force, self._replace = force or replace, replace
        self._staging = staging
        self._unlisted: list[Event] = []  # what the last listing could not say
        if replace and self._paths:
            raise Refused(
                "--replace with --path would delete everything but those paths at the target.",
                do="Give one of them.",
            )

    # -- before ----------------------------------------------------------------------------

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Say what will be done. Refused, NotFound; changes nothing."""
        for path in self._paths:
            if fault_of_path(path) or snapshot.find(path) is None:
                raise NotFound(f"The snapshot has no {_text(path)!r}.")
        features = self._rclone.features(self._remote)
        there = self._there(empty_is_enough=not self._replace)
        if there and not self._force:
            raise Refused(
                f"The target {PREFIX}{shown(self._remote)} is not empty.",
                do="Choose another folder, or say --force: what is of the same name is then "
                "replaced, everything else is left alone.",
            )
        files, size = self._expected(snapshot)
        plan: dict[str, Any] = {
            "target": PREFIX + shown(self._remote),
            "exists": there is not None,
            "replaces": bool(there),
            "paths": [_text(path) for path in self._paths],
            "files": files,
            "size": size,
            "verified_by": _verified_by(features),
            "left_out": "modes, owners, attributes, symlinks: remotes have none",
        }
        if self._replace:
            names = {_name(entry.path) for entry in snapshot.entries()}
            extra = [item for item in there or [] if item.path not in names]
            plan["deletes"] = len(extra)
            plan["deletes_first"] = [item.path for item in extra[:_NAMED]]
        return plan

    def _there(self, *, empty_is_enough: bool) -> list[Item] | None:
        """What is at the target: None if it does not exist, its top only where that is enough."""
        try:
            items, events = self._rclone.listing(self._remote, depth=1 if empty_is_enough else None)
        except NotFound as fault:
            if "no remote of the name" in fault.what:
                raise
            return None
        self._unlisted = [event for event in events if event.level in ("error", "critical")]
        return items

    def _expected(self, snapshot: SnapshotReader) -> tuple[int, int]:
        facts = snapshot.facts
        if not self._paths and "files" in facts and "size" in facts:
            return int(facts["files"]), int(facts["size"])
        entries = [entry for entry in self._chosen(snapshot) if entry.kind in _CONTENT]
        return len(entries), sum(entry.size for entry in entries)

    def _chosen(self, snapshot: SnapshotReader) -> Iterator[Entry]:
        if not self._paths:
            yield from snapshot.entries()
            return
        done = b""
        for path in self._paths:
            if not done or not path.startswith(done + b"/"):
                yield from snapshot.entries(path)
                done = path

    # -- restore ---------------------------------------------------------------------------

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Send what is chosen and compare it; see the head of this file."""
        self._rclone.open()
        features = self._rclone.features(self._remote)
        files, size = self._expected(snapshot)
        progress.plan(size=size, files=files)
        progress.phase("restoring files")
        noted = Noted(progress)
        facts: dict[str, Any] = {
            "target": PREFIX + shown(self._remote),
            "verified_by": _verified_by(features),
            "left_out": "modes, owners, attributes",
        }
        try:
            result = self._rclone.make_folder(self._remote)
            if result.status:
                raise fault_of(result, self._remote)
            with Staging(self._staging) as staging:
                sending = _Sending(self._rclone, self._remote, features, snapshot, staging, noted)
                sending.progress, sending.force = progress, self._force
                sending.all(self._chosen(snapshot))
            facts["damaged"], facts["lost"] = sending.damaged, sending.lost
            if self._replace:
                progress.phase("deleting what the backup does not have")
                facts["deleted"] = self._delete_extra(snapshot, sending, noted)
        except BaseException:
            self._rclone.close()
            raise
        return Outcome(sending.files, sending.size, noted.conclude(), facts)

    def compare(self, snapshot: SnapshotReader, *, progress: Progress) -> tuple[int, int]:
        """Hold everything at the remote against the backup; nothing is written there.

        Return how many files are the same and how many the backup does not know; Damaged, with
        names, when one is missing or different.
        """
        self._rclone.open()
        noted = Noted(progress)
        try:
            features = self._rclone.features(self._remote)
            with Staging(self._staging) as staging:
                sending = _Sending(self._rclone, self._remote, features, snapshot, staging, noted)
                sending.progress, sending.only_compare = progress, True
                sending.all(snapshot.entries())
            extra = self._extra(snapshot, sending.names)
        except BaseException:
            self._rclone.close()
            raise
        if sending.damaged or sending.lost:
            raise Damaged(
                f"{PREFIX}{shown(self._remote)} is not as backed up: {told_of(noted.conclude())}."
            )
        return sending.files, sum(not item.directory for item in extra)

    def _extra(self, snapshot: SnapshotReader, sent: set[str]) -> list[Item]:
        """What is at the target and was not sent: by the names that the target itself gives."""
        kept = set(sent)
        for entry in snapshot.entries():
            if entry.kind is Kind.DIRECTORY:
                kept.add(_name(entry.path))
        for name in sent:
            while name := name.rpartition("/")[0]:
                if name in kept:
                    break
                kept.add(name)
        there = self._there(empty_is_enough=False)
        if there is None and sent:
            raise StorageUnreachable(
                f"{PREFIX}{shown(self._remote)} does not list what was just compared there.",
                means="What the backup does not have may still be there.",
            )
        there = there or []
        return [item for item in there if item.path not in kept]

    def _delete_extra(self, snapshot: SnapshotReader, sending: _Sending, noted: Noted) -> int:
        if sending.damaged or sending.lost:
            noted.one(b"", "nothing was deleted at the target, because not all of it arrived")
            return 0
        extra = self._extra(snapshot, sending.names)
        files = [item.path for item in extra if not item.directory and "\n" not in item.path]
        for start in range(0, len(files), _DELETED):
            result = self._rclone.delete(self._remote, files[start : start + _DELETED])
            if result.status:
                raise _after_copy(fault_of(result, self._remote))
        folders = [item.path for item in extra if item.directory]
        tops = [path for path in folders if path.rpartition("/")[0] not in set(folders)]
        for path in tops:
            result = self._rclone.remove_empty(join(self._remote, path))
            if result.status:
                noted.fact(path.encode(), "an empty folder could not be removed")
        left = self._extra(snapshot, sending.names)
        for event in self._unlisted:
            noted.one(
                event.object.encode(),
                f"it cannot be listed, so nothing in it was deleted: {event.text}",
            )
        for item in left:
            if not item.directory:
                noted.one(item.path.encode(), "it is not in the backup and could not be deleted")
        return len(files)


class _Sending:
    """Batches on their way: `add` each entry, then `flush`."""

    def __init__(
        self,
        rclone: Rclone,
        remote: str,
        features: Features,
        snapshot: SnapshotReader,
        staging: Staging,
        noted: Noted,
    ) -> None:
        self.files = self.size = self.damaged = self.lost = 0
        self.force = self.only_compare = False
        self.names: set[str] = set()  # of what arrived, as rclone writes them
        self.progress: Progress
        self._rclone, self._remote, self._features = rclone, remote, features
        self._snapshot, self._staging, self._noted = snapshot, staging, noted
        # Names that came from a remote are rclone's own already; those of a disk are to be told.
        self._raw = bool(snapshot.facts.get("remote"))
        self._batch: list[tuple[bytes, Entry]] = []  # where it goes, and whose content it has
        self._folders: list[bytes] = []
        self._room = 0

    def all(self, entries: Iterator[Entry]) -> None:
        """Take every entry, and send what has gathered at the end."""
        for entry in entries:
            self.add(entry)
        self.flush()

    def add(self, entry: Entry) -> None:
        """Take one more entry; a full batch is sent."""
        fault = fault_of_path(entry.path) if entry.path else ""
        if fault:
            self.lost += 1
            self._noted.one(entry.path, fault)
        elif entry.kind is Kind.DIRECTORY:
            self._folders.append(entry.path)
        elif entry.kind in _CONTENT:
            content = entry
            if entry.kind is Kind.HARDLINK:
                found = self._snapshot.find(entry.target)
                if found is None or found.kind is not Kind.FILE:
                    self.lost += 1
                    self._noted.one(entry.path, "refused: it is linked to what is no file")
                    return
                content = found
            if self._batch and (content.size > self._room or len(self._batch) >= BATCH_FILES):
                self.flush()
            if not self._batch:
                self._room = BATCH_SIZE
            self._room -= content.size
            self._batch.append((entry.path, content))
        else:
            self._noted.fact(entry.path, f"remotes hold no {entry.kind.name.lower()}s")

    def flush(self) -> None:
        """Send what has gathered."""
        batch, self._batch = self._batch, []
        folders, self._folders = self._folders, []
        if not batch and not folders:
            return
        folder = self._staging.batch()
        try:
            size = self._stage(folder, batch, folders)
            sent = None if self.only_compare else self._send(folder, size, over=False)
            if batch:
                result, verdicts = self._compare(folder, size)
                if self.force and sent is not None and "*" in verdicts.values():
                    # It looked the same there, and is not.
                    sent = self._send(folder, size, over=True)
                    result, verdicts = self._compare(folder, size)
                self._judge(folder, size, verdicts, [sent or result, result])
            elif sent is not None and sent.status:  # folders only: nothing compares them
                raise _after_copy(fault_of(sent, self._remote))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _stage(
        self, folder: str, batch: Sequence[tuple[bytes, Entry]], folders: Sequence[bytes]
    ) -> int:
        """Write a batch into the staging folder; the bytes of it."""
        root, size = os.fsencode(folder), 0
        for path in folders:
            if path:
                os.makedirs(os.path.join(root, path), mode=0o700, exist_ok=True)
        contents = self._snapshot.contents(entry for _, entry in batch)
        for (path, _), (entry, pieces) in zip(batch, contents, strict=True):
            place = os.path.join(root, path)
            try:
                os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
                descriptor = os.open(
                    place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
                )
            except OSError as fault:
                _refuse_full(fault)
                self.lost += 1
                self._noted.one(path, f"it cannot be staged: {fault.strerror}")
                continue
            try:
                for offset, piece in pieces:
                    _write(descriptor, piece, offset)
                os.ftruncate(descriptor, entry.size)
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
                size += entry.size
            except Damaged as fault:
                self.damaged += 1
                self._noted.one(path, fault.what)
                os.unlink(place)
            except OSError as fault:
                _refuse_full(fault)
                self.lost += 1
                self._noted.one(path, f"it cannot be staged: {fault.strerror}")
                os.unlink(place)
            finally:
                os.close(descriptor)
        return size

    def _send(self, folder: str, size: int, *, over: bool) -> Result:
        """Raise what ends the whole restore; what concerns single files the comparison finds."""
        result = self._rclone.send(folder, self._remote, raw=self._raw, size=size, over=over)
        if result.status:
            fault = fault_of(result, self._remote)
            if isinstance(fault, Unreachable) or not any(event.object for event in result.events):
                raise _after_copy(fault)
        return result

    def _compare(self, folder: str, size: int) -> tuple[Result, dict[str, str]]:
        download = not _common(self._features)
        result, verdicts = self._rclone.compare(
            folder, self._remote, raw=self._raw, download=download, size=size
        )
        if result.status and not verdicts:
            fault = fault_of(result, self._remote)
            raise fault if self.only_compare else _after_copy(fault)
        return result, verdicts

    def _judge(
        self, folder: str, size: int, verdicts: Mapping[str, str], results: Sequence[Result]
    ) -> None:
        """Count what is good and note what is not, with what rclone said of it."""
        good = sum(sign == "=" for sign in verdicts.values())
        words = {
            "+": "it is not at the target",
            "*": "it differs at the target",
            "!": "it could not be compared",
        }
        for path, sign in verdicts.items():
            if sign != "=":
                self.lost += 1
                why = next(filter(None, (each.reason_for(path) for each in results)), "")
                told = words.get(sign, "it is not as it should be")
                self._noted.one(path.encode(), f"{told}: {why}" if why else told)
        staged = sum(len(files) for _, _, files in os.walk(os.fsencode(folder)))
        if staged != len(verdicts):
            self.lost += 1
            self._noted.one(
                b"", f"{staged:,} files were sent and {len(verdicts):,} compared: names clash there"
            )
        self.names.update(verdicts)
        self.files += good
        self.size += size
        self.progress.advance(size=size, files=good)


def _common(features: Features) -> str:
    return next((name for name in _COMPARED if name in features.hashes), "")


def _verified_by(features: Features) -> str:
    name = _common(features)
    return f"size and {name}" if name else "reading everything back (the remote has no hash)"


def told_of(problems: Sequence[Problem]) -> str:
    """The first of some problems, and how many there are more."""
    said = [f"{_text(problem.path)}: {problem.reason}" for problem in problems[:_FIRST]]
    more = f" and {len(problems) - _FIRST} more" if len(problems) > _FIRST else ""
    return "; ".join(said) + more


def _write(descriptor: int, piece: memoryview, offset: int) -> None:
    while piece:
        done = os.pwrite(descriptor, piece, offset)
        piece, offset = piece[done:], offset + done


def _refuse_full(fault: OSError) -> None:
    if fault.errno in (28, 122):  # ENOSPC, EDQUOT
        raise TargetFull(
            "There is no room to stage files.",
            do="Free space, or name another folder with --cache-dir, and run the restore again.",
        ) from None


def _after_copy(fault: StrongroomError) -> StrongroomError:
    """An error that came when something was written already."""
    fault.means = "The target is not complete; nothing there was deleted; the backup is untouched."
    if isinstance(fault, StorageFull):
        fault.do = "Free space or raise the quota, then run the same command with --force."
    elif isinstance(fault, Unreachable):
        fault.do = "Run the same command again with --force when it answers."
    return fault


def _name(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


__all__ = ["RcloneSink", "told_of"]
