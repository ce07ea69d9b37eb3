"""A directory as a Sink: the whole snapshot or chosen paths, elsewhere or in place.

Nothing is written outside the target: every directory is opened beneath it and through no
symlink, every file is created anew. A target that holds anything is refused unless `force`
lets entries give way, and the source's own root unless `in_place` says so; what the
snapshot does not name is never removed. Success is told after the file system has synced.
"""

from __future__ import annotations

import os
import stat as modes
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, compress
from typing import Any

from strongroom.errors import NotFound, Refused, StrongroomError
from strongroom.files.beneath import Beneath
from strongroom.files.restoring import Restoring, fault_of_path
from strongroom.files.source import shown
from strongroom.files.walk import DIRECTORY, reason
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import scan_dir, sync_file_system
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome, SnapshotReader

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REGULAR = modes.S_IFREG >> 12
_SIZES = struct.Struct("<32xQ16x")


class FileSink:
    """The directory `target`; see `ports.Sink`.

    `paths` chooses entries and everything below them; nothing chosen is everything. `owner` None
    sets owners and tells where it may not; False leaves them to the user who restores.
    """

    def __init__(
        self,
        target: bytes,
        *,
        paths: Sequence[bytes] = (),
        in_place: bool = False,
        force: bool = False,
        owner: bool | None = None,
    ) -> None:
        self._target = os.path.abspath(target)
        self._paths = _outermost(paths)
        self._in_place, self._force = in_place, force or in_place
        self._owner = owner

    # -- before ----------------------------------------------------------------------------

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Say what will be done. Refused, NotFound; changes nothing."""
        for path in self._paths:
            if fault_of_path(path) or snapshot.find(path) is None:
                raise NotFound(f"The snapshot has no {shown(path)!r}.")
        exists, empty = self._look_at_target(snapshot)
        files, size = self._expected(snapshot)
        room = os.statvfs(_nearest(self._target))
        return {
            "target": shown(self._target),
            "exists": exists,
            "replaces": not empty,
            "in_place": self._in_place,
            "paths": [shown(path) for path in self._paths],
            "files": files,
            "size": size,
            "free": room.f_bavail * room.f_frsize,
        }

    def _look_at_target(self, snapshot: SnapshotReader) -> tuple[bool, bool]:
        """Return whether the target exists, and whether it is empty."""
        name = shown(self._target)
        try:
            names = os.listdir(self._target)
        except FileNotFoundError:
            self._check_above()
            return False, True
        except OSError as fault:
            raise Refused(f"The target {name!r} cannot be used: {fault.strerror}.") from None
        if not names:
            return True, True
        if not self._in_place and self._is_own_root(snapshot):
            raise Refused(
                f"The target {name!r} is the source itself.",
                do="Restore elsewhere with `--to DIR`, or say --in-place.",
            )
        if not self._force:
            raise Refused(
                f"The target {name!r} is not empty.",
                do="Choose another directory, or say --force: what is of the same name is then"
                " replaced, everything else is left alone.",
            )
        return True, False

    def _is_own_root(self, snapshot: SnapshotReader) -> bool:
        root = snapshot.facts.get("root")
        return root in (shown(self._target), shown(os.path.realpath(self._target)))

    def _check_above(self) -> None:
        above = _nearest(self._target)
        if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
            return
        raise Refused(
            f"The target {shown(self._target)!r} cannot be made in {shown(above)!r}.",
            do="Choose a directory that this user may write to.",
        )

    def _expected(self, snapshot: SnapshotReader) -> tuple[int, int]:
        """Files and bytes of what is chosen, from the source's own account where there is one."""
        facts = snapshot.facts
        if not self._paths and "files" in facts and "size" in facts:
            return int(facts["files"]), int(facts["size"])
        files = size = 0
        for entry in self._chosen(snapshot):
            if entry.kind in (Kind.FILE, Kind.STREAM):
                files += 1
                size += entry.size
        return files, size

    def _chosen(self, snapshot: SnapshotReader) -> Iterator[Entry]:
        """Yield what is to be restored: parents before what is in them."""
        if not self._paths:
            yield from snapshot.entries()
            return
        given: set[bytes] = set()
        for path in self._paths:
            parts = path.split(b"/")
            for depth in range(1, len(parts)):
                above = b"/".join(parts[:depth])
                if above not in given:
                    given.add(above)
                    yield snapshot.find(above) or Entry(above, Kind.DIRECTORY, 0o700)
            yield from snapshot.entries(path)

    # -- restore ---------------------------------------------------------------------------

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Write what is chosen. TargetFull when there is no room; `Outcome.facts["damaged"]`
        counts files whose content did not verify: they are not there, and the problems name them.
        """
        _, empty = self._look_at_target(snapshot)
        files, size = self._expected(snapshot)
        progress.plan(size=size, files=files)
        progress.phase("restoring files")
        root = self._make_target()
        run = Restoring(
            snapshot,
            root,
            progress,
            # What came from a remote has no owner to give back.
            owner=self._owner is not False and not snapshot.facts.get("remote"),
            replace=not empty,
        )
        try:
            run.add(self._chosen(snapshot))
            run.link()
            if empty:
                self._count(root, run)
            run.set_directories()
            progress.phase("syncing the target")
            self._sync(root)
        finally:
            run.close()
            os.close(root)
        facts = {"target": shown(self._target), "damaged": run.damaged}
        return Outcome(run.files + run.linked, run.size, run.noted.conclude(), facts)

    def _make_target(self) -> int:
        """Make the target where it is not there yet, and open it."""
        try:
            os.makedirs(self._target, mode=0o700, exist_ok=True)
            return os.open(self._target, _FLAGS)
        except OSError as fault:
            raise Refused(
                f"The target {shown(self._target)!r} cannot be made: {fault.strerror}.",
                do="Choose a directory that this user may write to.",
            ) from None

    def _count(self, root: int, run: Restoring) -> None:
        """Compare what stands in a target that was empty with what was written into it."""
        paths = run.made()
        half = (len(paths) + 1) // 2
        with ThreadPoolExecutor(2, thread_name_prefix="count") as pool:
            tallies = list(pool.map(partial(_tally, root), (paths[:half], paths[half:])))
        found = [sum(column) for column in zip(*(counts for counts, _ in tallies), strict=True)]
        for path, why in chain.from_iterable(told for _, told in tallies):
            run.noted.one(path, why)
        written = [run.files + run.linked, run.directories, run.others, run.size + run.linked_size]
        if found != written:
            run.noted.one(
                b"",
                f"the target holds {found[0]} files of {found[3]} bytes, {found[1]} directories and"
                f" {found[2]} other entries, but {written[0]} files of {written[3]} bytes,"
                f" {written[1]} and {written[2]} were written: somebody else is at work there",
            )

    def _sync(self, root: int) -> None:
        try:
            sync_file_system(root)
        except OSError as fault:
            raise StrongroomError(
                f"What was restored could not be made durable: {fault.strerror}.",
                means="Files at the target may be lost or wrong; the repository is untouched.",
                do="Check the disk of the target and restore to another one.",
            ) from None


def _tally(root: int, paths: Sequence[bytes]) -> tuple[list[int], list[tuple[bytes, str]]]:
    """Count what is in directories: files, directories, others, bytes; and what did not open."""
    found = [0, 0, 0, 0]
    told: list[tuple[bytes, str]] = []
    beneath = Beneath(root, kept=8)  # a walk comes back to few
    try:
        for path in paths:
            try:
                _, kinds, keys, _, failed = scan_dir(beneath.directory(path))
            except OSError as fault:
                told.append((path, f"cannot be looked at again: {fault.strerror}"))
                continue
            told += [
                (os.path.join(path, name), f"cannot be looked at again: {reason(code)}")
                for name, code in failed
            ]
            regular, directories = kinds.count(_REGULAR), kinds.count(DIRECTORY)
            found[0] += regular
            found[1] += directories
            found[2] += len(kinds) - regular - directories
            sizes = chain.from_iterable(_SIZES.iter_unpack(keys))
            found[3] += sum(compress(sizes, map(_REGULAR.__eq__, kinds)))
    finally:
        beneath.close()
    return found, told


def _outermost(paths: Sequence[bytes]) -> tuple[bytes, ...]:
    """Sort paths, without those that lie below another."""
    kept: list[bytes] = []
    for path in sorted((path.strip(b"/") for path in paths), key=lambda path: path + b"/"):
        if not path:
            return ()
        if not kept or not (path == kept[-1] or path.startswith(kept[-1] + b"/")):
            kept.append(path)
    return tuple(kept)


def _nearest(path: bytes) -> bytes:
    """The path itself or the nearest one above it that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


__all__ = ["FileSink"]
