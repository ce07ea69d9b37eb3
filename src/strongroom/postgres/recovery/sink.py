"""A data directory as a Sink: a physical backup, whole, into an empty directory or over an old one.

The order is what makes a directory that is not complete one that does not start (traps 4, 6, 55):
pg_control goes first where there is one, and comes last, renamed into place when everything else,
backup_label among it, is durable. A marker names a directory whose restore did not come to its end;
it can be gone on with.

Old contents (`delta`) are compared piece by piece with the ids of the repository, never by time or
size; what the backup does not name is removed, and the log that the old server had is set aside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from strongroom.errors import Damaged, Refused, StrongroomError, TargetFull
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import sync_file_system
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile, as_labelled
from strongroom.postgres.physical.crc import crc32c
from strongroom.postgres.physical.facts import CONFIG, TABLESPACES, PhysicalFacts, Tablespace
from strongroom.postgres.physical.label import Label
from strongroom.postgres.physical.manifest import File, Manifest
from strongroom.postgres.recovery.settings import (
    AUTO_CONF,
    RECOVERY_SIGNAL,
    STANDBY_SIGNAL,
    Recovery,
    auto_conf,
    own_conf,
)
from strongroom.postgres.recovery.writing import Folders, Owner, Writer, make_folder, remove, shown
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome, Problem, SnapshotReader
from strongroom.rules.recovery import Made

MARKER = b"strongroom.restoring"
_CONTROL = b"global/pg_control"
_MANIFEST = b"backup_manifest"
_PG_WAL = b"pg_wal"
_OWN = frozenset((AUTO_CONF, RECOVERY_SIGNAL, STANDBY_SIGNAL, MARKER))
_SCRATCH = b".strongroom"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (28, 122)  # ENOSPC, EDQUOT


@dataclass
class _Place:
    """A directory that a part of the tree goes to: the data directory or a tablespace."""

    prefix: bytes  # in the tree
    path: bytes  # here
    folders: Folders
    names: dict[bytes, set[bytes]] = field(default_factory=dict)  # what is in each folder
    directories: list[Entry] = field(default_factory=list)

    def relative(self, entry: Entry) -> bytes:
        return entry.path[len(self.prefix) + 1 :]


@dataclass(frozen=True, slots=True)
class _Control:
    """pg_control as it will be."""

    content: bytes
    mode: int
    owner: Owner | None


class PhysicalSink:
    """The data directory `target`; see `ports.Sink`.

    `spaces` maps a tablespace, by its oid or its old location, to where it goes; the same place
    again allows its old one, where something of that name is here already. `made` are tablespaces
    that recovery makes again, at their very places and at no other: PostgreSQL writes into what it
    finds there, be it the original's, so what is there already must be allowed. `owner` None gives files
    their recorded owner where we are root; False leaves them to us; or one for all of them.
    Without `recovery` the cluster is told nothing: it would open at the end of its own log.
    """

    def __init__(
        self,
        target: bytes,
        *,
        recovery: Recovery | None = None,
        delta: bool = False,
        spaces: Mapping[bytes, bytes] | None = None,
        made: Sequence[Made] = (),
        owner: Owner | bool | None = None,
        jobs: int | None = None,
    ) -> None:
        self._target = os.path.abspath(target)
        self._recovery, self._delta = recovery, delta
        self._spaces = {key: os.path.abspath(path) for key, path in (spaces or {}).items()}
        self._made = {space.oid: space.location for space in made}
        self._owner_of = owner
        self._changed: dict[bytes, bytes] = {}  # files that are not as the backup has them
        self._jobs = jobs or max(2, os.cpu_count() or 2)

    # -- before ----------------------------------------------------------------------------

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Say what will be done. Refused; changes nothing."""
        facts = facts_of(snapshot)
        exists, old = self._look_at(self._target, facts)
        spaces = self._locations(facts)
        size = sum(facts.size_by_kind.values()) or _size(snapshot)
        free = free_at(self._target)
        if not old:
            self._check_room(snapshot, spaces, size)
        return {
            "target": shown(self._target),
            "exists": exists,
            "delta": old,
            "size": size,
            "free": free,
            "tablespaces": {
                space.oid: {"from": shown(space.location), "to": shown(spaces[space.oid])}
                for space in facts.tablespaces
            },
            "server_version": facts.server.get("version"),
            **sorted_otherwise(facts.server),
            "starts_at": facts.backup_label.split(b"\n", 1)[0].decode("ascii", "replace"),
        }

    def _check_room(self, snapshot: SnapshotReader, spaces: Mapping[str, bytes], size: int) -> None:
        """Does what goes to each file system fit there?"""
        wanted = {self._target: size}
        for oid, path in spaces.items():
            prefix = TABLESPACES + b"/" + oid.encode()
            wanted[path] = sum(entry.size for entry in snapshot.entries(prefix))
            wanted[self._target] -= wanted[path]
        devices: dict[int, list[bytes]] = {}
        for path in wanted:
            devices.setdefault(os.stat(_nearest(path)).st_dev, []).append(path)
        for paths in devices.values():
            needed, free = sum(wanted[path] for path in paths), free_at(paths[0])
            if needed > free:
                names = " and ".join(repr(shown(path)) for path in paths)
                raise Refused(
                    f"The backup has {needed:,} bytes for {names}; there is room for {free:,}.",
                    do="Choose another place, or map tablespaces to other disks with --tablespace.",
                )

    def _look_at(self, path: bytes, facts: PhysicalFacts) -> tuple[bool, bool]:
        """Return whether the target exists, and whether something is in it (trap 53)."""
        name = shown(path)
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            above = _nearest(path)
            if not (os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)):
                raise Refused(
                    f"The target {name!r} cannot be made in {shown(above)!r}.",
                    do="Choose a directory that this user may write to.",
                ) from None
            return False, False
        except OSError as fault:
            raise Refused(f"The target {name!r} cannot be used: {fault.strerror}.") from None
        if not names:
            return True, False
        if not self._delta:
            again = MARKER in names
            raise Refused(
                f"The target {name!r} is not empty"
                + (": a restore into it did not come to its end." if again else "."),
                do="Say --delta to go on with it."
                if again
                else "Choose another directory, or say --delta: what is like the backup is kept,"
                " everything else in it goes.",
            )
        self._check_old(path, names, facts)
        return True, True

    def _check_old(self, path: bytes, names: list[bytes], facts: PhysicalFacts) -> None:
        """Is what is in the target a data directory of this system, and of no running server?"""
        name = shown(path)
        if b"postmaster.pid" in names and _lives(path):
            raise Refused(
                f"A server runs on {name!r}.",
                do="Stop it first: `pg_ctl stop -D DIR -m fast`, or its service.",
            )
        if MARKER in names and _CONTROL not in _present(path):
            if _read_marker(path) == facts.system_id:
                return
            raise Refused(f"The target {name!r} is a half-restored directory of another system.")
        version = str(int(facts.server.get("version_number", 0)) // 10000)
        try:
            with open(os.path.join(path, b"PG_VERSION"), "rb") as file:
                found = file.read(16).strip().decode("ascii", "replace")
            with open(os.path.join(path, _CONTROL), "rb") as file:
                control = ControlFile.parse(file.read(FILE_SIZE))
        except (OSError, ValueError):
            raise Refused(
                f"The target {name!r} is not empty, and is no data directory.",
                do="Choose an empty directory.",
            ) from None
        if control.system_id != facts.system_id or version not in {"0", found}:
            raise Refused(
                f"The target {name!r} is another cluster: PostgreSQL {found}, system"
                f" {control.system_id}; the backup is of PostgreSQL {version}, system"
                f" {facts.system_id}.",
                do="Choose an empty directory; nothing of another cluster is overwritten.",
            )

    def _locations(self, facts: PhysicalFacts) -> dict[str, bytes]:
        """Where each tablespace goes; Refused where it would go over what is here (trap 9)."""
        found: dict[str, bytes] = {}
        asked = dict(self._spaces)
        for space in facts.tablespaces:
            given = asked.pop(space.oid.encode(), None) or asked.pop(space.location, None)
            if not (given or space.location).startswith(b"/"):
                raise Damaged(
                    f"The backup names no place for its tablespace {space.oid}.",
                    do=f"Give it one: --tablespace {space.oid}=DIRECTORY.",
                )
            place = given or space.location
            found[space.oid] = place
            self._check_space(space, place, given is not None)
        for oid, location in self._made.items():
            self._check_made(oid, location, asked)
        if asked:
            known = ", ".join(
                [f"{one.oid}={shown(one.location)}" for one in facts.tablespaces]
                + [f"{oid}={shown(location)}" for oid, location in self._made.items()]
            )
            raise Refused(
                f"The backup has no tablespace {shown(next(iter(asked)))!r};"
                f" it has {known or 'none'}."
            )
        if len(set(found.values())) != len(found):
            raise Refused("Two tablespaces cannot go to one place.")
        return found

    def _check_space(self, space: Tablespace, place: bytes, given: bool) -> None:
        name = shown(place)
        if place == self._target or place.startswith(self._target + b"/"):
            raise Refused(f"The tablespace {name!r} would be inside the data directory.")
        try:
            names = os.listdir(place)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise Refused(f"The tablespace {name!r} cannot be used: {fault.strerror}.") from None
        if not given:
            raise Refused(
                f"The tablespace {space.oid} was at {name!r}, and something is there on this"
                " machine: the original may be using it.",
                do=f"Give it another place: --tablespace {name}=NEW. If it is to go there all the"
                f" same: --tablespace {name}={name}.",
            )
        if names and not self._delta:
            raise Refused(
                f"The place of tablespace {space.oid}, {name!r}, is not empty.",
                do="Choose an empty directory for it.",
            )

    def _check_made(self, oid: int, location: bytes, asked: dict[bytes, bytes]) -> None:
        """Recovery makes a tablespace where the log says, and uses what it finds there."""
        name = shown(location)
        given = asked.pop(str(oid).encode(), None) or asked.pop(location, None)
        if given is not None and given != os.path.abspath(location):
            raise Refused(
                f"The tablespace {oid} was made after the backup, and PostgreSQL makes it again at"
                f" {name!r}: it cannot go elsewhere.",
                do="Restore to a moment before it was made, or from a backup that was taken after;"
                f" or let it be made there: --tablespace {name}={name}.",
            )
        try:
            names = os.listdir(location)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise Refused(f"The tablespace {name!r} cannot be used: {fault.strerror}.") from None
        if given is None or names:
            raise Refused(
                f"The tablespace {oid} was made after the backup at {name!r}, and something is there"
                " on this machine: recovery would write into it, and the original may be using it.",
                do="Restore on another machine, to a moment before it was made, or from a backup"
                " that was taken after. If nobody uses it, empty the directory and write"
                f" --tablespace {name}={name}.",
            )

    # -- restore ---------------------------------------------------------------------------

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Write it all. TargetFull when there is no room; Damaged when a piece cannot be had."""
        self.preflight(snapshot)
        try:
            return self._restore(snapshot, progress)
        except OSError as fault:
            kind = TargetFull if fault.errno in _FULL else StrongroomError
            where = shown(os.fsencode(fault.filename)) if fault.filename else shown(self._target)
            raise kind(
                f"{where} cannot be written: {fault.strerror}.",
                means="The target has no pg_control and does not start; the repository is as it"
                " was.",
                do="Make room or mend the rights, then run the same command again with --delta.",
            ) from None

    def _restore(self, snapshot: SnapshotReader, progress: Progress) -> Outcome:
        facts = facts_of(snapshot)
        spaces = self._locations(facts)
        old = bool(_listed(self._target))
        progress.phase("looking at the target")
        places = self._make(spaces)
        data = places[0]
        aside = None
        try:
            self._begin(data, facts)
            if old:
                aside = self._set_aside_wal(data)
            progress.phase("restoring files")
            progress.plan(size=sum(facts.size_by_kind.values()) or _size(snapshot))
            writer = Writer(
                snapshot, progress, delta=self._delta, jobs=self._jobs, owner=self._owner
            )
            counted = [0]
            writer.write(self._files(snapshot, places, counted))
            self._link(data, spaces)
            config = self._external(snapshot, data, writer, facts)
            self._configure(snapshot, data, facts, spaces)
            control = self._control(snapshot, facts)
            self._amend_manifest(data, facts)
            if old:
                for place in places:
                    self._clear(place, facts)
            self._set_directories(places)
            for location in self._made.values():
                self._make_for_recovery(location, data)
            progress.phase("making it durable")
            for place in places:
                sync_file_system(place.folders.root)
            self._commit(data, facts, control)
        finally:
            for place in places:
                place.folders.close()
        told: dict[str, Any] = {
            "target": shown(self._target),
            "fetched": writer.written,
            "kept": writer.kept,
            "tablespaces": {oid: shown(path) for oid, path in spaces.items()},
        }
        told |= sorted_otherwise(facts.server)
        if aside is not None:
            told["old_wal"] = shown(aside)
        if config is not None:
            told["configuration"] = shown(config)
        problems = [
            Problem(page.path, f"block {page.block} had a wrong checksum on the server already")
            for page in facts.bad_pages
        ]
        return Outcome(counted[0], writer.written + writer.kept, problems, told)

    def _make(self, spaces: Mapping[str, bytes]) -> list[_Place]:
        """Make the directories that are filled, and open them; the data directory first."""
        places = []
        for prefix, path in [
            (b"data", self._target),
            *((b"tablespaces/" + oid.encode(), path) for oid, path in sorted(spaces.items())),
        ]:
            os.makedirs(path, mode=0o700, exist_ok=True)
            places.append(_Place(prefix, path, Folders(os.path.realpath(path))))
        return places

    def _make_for_recovery(self, location: bytes, data: _Place) -> None:
        """An empty directory where recovery wants one: it makes none itself."""
        os.makedirs(location, mode=0o700, exist_ok=True)
        owner = self._owner_of_all(data)
        if owner is not None:
            os.chown(location, *owner, follow_symlinks=False)

    def _begin(self, data: _Place, facts: PhysicalFacts) -> None:
        """From here on, until the end, nobody can start what is in the target."""
        root = data.folders.root
        body = json.dumps({"system_id": str(facts.system_id)}).encode()
        self._put(root, MARKER, body, 0o600)
        os.fsync(root)
        with suppress(FileNotFoundError):
            folder = data.folders.of(b"global")
            with suppress(FileNotFoundError):
                os.unlink(b"pg_control", dir_fd=folder)
            os.fsync(folder)
        if self._delta and b"postmaster.pid" in os.listdir(self._target) and _lives(self._target):
            raise Refused(
                f"A server was started on {shown(self._target)!r} while it was looked at.",
                means="Its pg_control was removed: stop it with -m immediate, and restore.",
                do="Stop the server, then run the same command again.",
            )

    def _set_aside_wal(self, data: _Place) -> bytes | None:
        """Move what the old server had in pg_wal: it may not have been archived (trap 44), and must
        not be replayed in the place of what is in the archive."""
        here = os.path.join(data.folders.path, _PG_WAL)
        try:
            kept = [
                name for name in os.listdir(here) if len(name) >= 24 or name.endswith(b".history")
            ]
        except FileNotFoundError:
            return None
        real = os.path.realpath(here)
        if os.path.islink(here):  # it has a disk of its own, and keeps it
            here = real
        if not kept:
            return None
        beside = real if real != os.path.join(data.folders.path, _PG_WAL) else data.folders.path
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()).encode()
        aside = beside + b".wal-before-" + stamp
        os.makedirs(aside, mode=0o700)
        for name in os.listdir(here):
            os.rename(os.path.join(here, name), os.path.join(aside, name))
        return aside

    def _files(
        self, snapshot: SnapshotReader, places: list[_Place], counted: list[int]
    ) -> Iterator[tuple[Entry, int]]:
        """Make every folder, and yield the files with the folder that each is in."""
        for entry in snapshot.entries():
            place = next(
                (
                    one
                    for one in places
                    if entry.path == one.prefix or entry.path.startswith(one.prefix + b"/")
                ),
                None,
            )
            if place is None:
                continue
            relative = place.relative(entry)
            check_path(relative)
            above, _, name = relative.rpartition(b"/")
            if entry.kind is Kind.DIRECTORY:
                place.directories.append(entry)
                place.names.setdefault(relative, set())
                if relative:
                    place.names.setdefault(above, set()).add(name)
                    if not self._is_linked_wal(place, relative):
                        make_folder(place.folders.of(above), name)
            elif entry.kind in (Kind.FILE, Kind.STREAM):
                place.names.setdefault(above, set()).add(name)
                if place is places[0] and relative == _CONTROL:
                    continue
                counted[0] += 1
                yield entry, place.folders.of(above)

    def _is_linked_wal(self, place: _Place, relative: bytes) -> bool:
        """In an old directory pg_wal may be a link to a disk of its own, which it stays."""
        if relative != _PG_WAL and not relative.startswith(_PG_WAL + b"/"):
            return False
        here = os.path.join(place.folders.path, _PG_WAL)
        if not (place.prefix == b"data" and os.path.islink(here)):
            return False
        os.makedirs(os.path.join(place.folders.path, relative), mode=0o700, exist_ok=True)
        return True

    def _link(self, data: _Place, spaces: Mapping[str, bytes]) -> None:
        """pg_tblspc/<oid> leads to the tablespaces (trap 54)."""
        if not spaces:
            return
        folder = data.folders.of(b"pg_tblspc")
        for oid, path in spaces.items():
            name = oid.encode()
            data.names.setdefault(b"pg_tblspc", set()).add(name)
            remove(folder, name)
            os.symlink(path, name, dir_fd=folder)
            owner = self._owner_of_all(data)
            if owner is not None:
                os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)

    def _external(
        self, snapshot: SnapshotReader, data: _Place, writer: Writer, facts: PhysicalFacts
    ) -> bytes | None:
        """Configuration that was outside goes beside the target; where there is none inside, what
        the server needs to start is made of it (trap 24)."""
        if not facts.external:
            return None
        beside = self._target + b".config"
        os.makedirs(beside, mode=0o700, exist_ok=True)
        place = _Place(b"config", beside, Folders(os.path.realpath(beside)))
        try:
            again = Writer(snapshot, _Quiet(), delta=True, jobs=1, owner=self._owner)
            again.write(self._files(snapshot, [place], [0]))
            sync_file_system(place.folders.root)
        finally:
            place.folders.close()
        writer.written += again.written
        self._adopt(snapshot, data)
        return beside

    def _adopt(self, snapshot: SnapshotReader, data: _Place) -> None:
        files = {
            entry.path[len(CONFIG) :]: partial(_content, snapshot, entry)
            for entry in snapshot.entries(CONFIG)
            if entry.kind is Kind.FILE
        }
        root = data.folders.root
        inside = data.names.get(b"", set())
        for name in (b"postgresql.conf", b"pg_hba.conf", b"pg_ident.conf"):
            found = [path for path in files if path.endswith(b"/" + name)]
            if name in inside or len(found) != 1:
                continue
            main = name == b"postgresql.conf"
            text = own_conf(found[0], files) if main else files[found[0]]()
            self._put(root, name, text, 0o600)
            self._changed[name] = text
            inside.add(name)

    def _configure(
        self,
        snapshot: SnapshotReader,
        data: _Place,
        facts: PhysicalFacts,
        spaces: Mapping[str, bytes],
    ) -> None:
        """What the server is told: how to recover, and where its tablespaces are."""
        root, names = data.folders.root, data.names.setdefault(b"", set())
        moved = any(
            spaces.get(space.oid, space.location) != space.location for space in facts.tablespaces
        )
        if moved and facts.tablespace_map:
            # PostgreSQL makes the links anew from it: the old places, on this machine.
            content = space_map(spaces)
            self._put(root, b"tablespace_map", content, 0o600)
            self._changed[b"tablespace_map"] = content
        if self._recovery is None:
            return
        entry = snapshot.find(b"data/" + AUTO_CONF)
        old = _content(snapshot, entry) if entry is not None else b""
        note = "set by strongroom restore"
        self._put(root, AUTO_CONF, auto_conf(old, self._recovery, note), 0o600)
        for signal in (RECOVERY_SIGNAL, STANDBY_SIGNAL):
            remove(root, signal)
            names.discard(signal)
        self._put(root, self._recovery.signal, b"", 0o600)
        names |= {AUTO_CONF, self._recovery.signal}

    def _clear(self, place: _Place, facts: PhysicalFacts) -> None:
        """Remove what the backup does not name. Of a tablespace only our version's directory: what
        is beside it belongs to a cluster of another version."""
        linked = os.path.islink(os.path.join(place.folders.path, _PG_WAL))
        for folder, names in place.names.items():
            if place.prefix != b"data" and not folder:
                continue
            if linked and folder.split(b"/", 1)[0] == _PG_WAL:
                continue
            fd = place.folders.of(folder)
            for name in os.listdir(fd):
                raw = os.fsencode(name)
                if raw not in names and not (not folder and raw == MARKER):
                    remove(fd, raw)
                    place.folders.forget(os.path.join(folder, raw) if folder else raw)

    def _set_directories(self, places: list[_Place]) -> None:
        for place in places:
            for entry in reversed(place.directories):
                relative = place.relative(entry)
                if place.prefix == b"data" and self._is_linked_wal(place, relative):
                    continue
                fd = place.folders.of(relative)
                owner = self._owner(entry)
                if owner is not None:
                    os.fchown(fd, *owner)
                mode = entry.mode
                if not relative:  # PostgreSQL starts on no other (trap 54)
                    mode = 0o750 if mode & 0o050 == 0o050 else 0o700
                os.fchmod(fd, mode)

    def _control(self, snapshot: SnapshotReader, facts: PhysicalFacts) -> _Control:
        """pg_control, so that recovery begins where the backup did even without backup_label: what it
        named when it was copied is a later checkpoint, and a start from there is silent corruption
        (trap 4)."""
        entry = snapshot.find(b"data/" + _CONTROL)
        if entry is None:
            raise Damaged("The backup has no pg_control.")
        content = _content(snapshot, entry)
        try:
            label = Label.parse(facts.backup_label)
            system_id = ControlFile.parse(content).system_id
            made = as_labelled(
                content, label.start, label.checkpoint, label.timeline, standby=label.from_standby
            )
        except ValueError as fault:
            raise Damaged(f"What was restored is no cluster: {fault}.") from None
        if system_id != facts.system_id:
            raise Damaged("What was restored is not what the facts of the backup say.")
        self._changed[_CONTROL] = made
        return _Control(made, entry.mode, self._owner(entry))

    def _amend_manifest(self, data: _Place, facts: PhysicalFacts) -> None:
        """backup_manifest tells of the files that are another's now, so that pg_verifybackup has
        nothing to say of them; it passes over those of recovery itself."""
        root = data.folders.root
        try:
            manifest = Manifest.parse(_read_at(root, _MANIFEST))
        except (OSError, ValueError):
            return  # pg_verifybackup says it
        files = {file.path: file for file in manifest.files}
        when = int(facts.stop_time.timestamp())  # the same restore writes the same bytes
        for path, content in self._changed.items():
            files[path] = File.summed(path, len(content), when, crc32c(content))
        made = replace(manifest, files=tuple(files.values())).encode()
        self._put(root, _MANIFEST, made, 0o600)

    def _commit(self, data: _Place, facts: PhysicalFacts, control: _Control) -> None:
        """All else is durable: pg_control takes its place, and the directory can be started."""
        try:
            same = Label.parse(_read_at(data.folders.root, b"backup_label")) == Label.parse(
                facts.backup_label
            )
        except (OSError, ValueError) as fault:
            raise Damaged(f"What was restored is no cluster: {fault}.") from None
        if not same:
            raise Damaged("What was restored is not what the facts of the backup say.")
        folder = data.folders.of(b"global")
        self._put(folder, b"pg_control", control.content, control.mode, control.owner)
        os.fsync(folder)
        os.unlink(MARKER, dir_fd=data.folders.root)
        os.fsync(data.folders.root)
        above = os.open(os.path.dirname(data.folders.path) or b"/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(above)
        finally:
            os.close(above)

    # -- small things ----------------------------------------------------------------------

    def _put(
        self, folder: int, name: bytes, content: bytes, mode: int, owner: Owner | None = None
    ) -> None:
        """Write a small file whole, durable, under its name at once."""
        scratch = name + _SCRATCH
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        fd = os.open(scratch, _NEW, 0o600, dir_fd=folder)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            owner = owner or self._owner_like(folder)
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _owner(self, entry: Entry) -> Owner | None:
        if isinstance(self._owner_of, tuple):
            return self._owner_of
        if self._owner_of is False or os.geteuid() != 0:
            return None
        self._seen = entry.uid, entry.gid
        return self._seen

    _seen: Owner | None = None

    def _owner_like(self, folder: int) -> Owner | None:
        """Whose the small files of ours are: the owner's of everything else."""
        del folder
        return self._owner_of if isinstance(self._owner_of, tuple) else self._seen

    def _owner_of_all(self, data: _Place) -> Owner | None:
        return self._owner_like(data.folders.root)


class _Quiet:
    """Progress of what is not counted."""

    def plan(self, *, size: int = 0, files: int = 0) -> None: ...
    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None: ...
    def phase(self, name: str) -> None: ...
    def problem(self, path: bytes, reason: str) -> None: ...


def facts_of(snapshot: SnapshotReader) -> PhysicalFacts:
    """The facts of a physical backup; Damaged when this is none that can be read."""
    try:
        return PhysicalFacts.from_json(snapshot.facts)
    except ValueError as fault:
        raise Damaged(
            f"The backup cannot be understood: {fault}.",
            do="Use the program that wrote it, or a newer one.",
        ) from None


def sorted_otherwise(server: Mapping[str, Any], here: str | None = None) -> dict[str, str]:
    """What to do where this machine sorts text by another version of libc than the server did.

    `here` stands in for this machine's version. Empty where both agree or nothing is known of one;
    of ICU nothing is known here, and PostgreSQL warns of it.
    """
    with suppress(ValueError, OSError):
        here = here or (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    there = {version for provider, version in server.get("collations", ()) if provider == "c"}
    if not here or not there or there == {here}:
        return {}
    was = ", ".join(sorted(there))
    return {
        "collations": f"text was sorted by libc {was}, and this machine has {here}: indexes of text"
        " may be wrong. After the start, in each database: REINDEX DATABASE; ALTER DATABASE …"
        " REFRESH COLLATION VERSION"
    }


def check_path(path: bytes) -> None:
    """Refuse a path that leads out of its place; a repository may be somebody else's."""
    parts = path.split(b"/") if path else []
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise Damaged(f"The backup names a path that leads elsewhere: {shown(path)!r}.")


def space_map(spaces: Mapping[str, bytes]) -> bytes:
    """tablespace_map that leads each tablespace, by its oid, to a place."""
    return b"".join(
        oid.encode() + b" " + _escaped(path) + b"\n" for oid, path in sorted(spaces.items())
    )


def _escaped(path: bytes) -> bytes:
    for letter in (b"\\", b"\n", b"\r"):
        path = path.replace(letter, b"\\" + letter)
    return path


def _content(snapshot: SnapshotReader, entry: Entry) -> bytes:
    return b"".join(bytes(piece) for piece in snapshot.stream(entry))


def _read_at(folder: int, name: bytes) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb") as file:
        return file.read()


def _size(snapshot: SnapshotReader) -> int:
    return sum(entry.size for entry in snapshot.entries())


def _listed(path: bytes) -> list[bytes]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _present(path: bytes) -> set[bytes]:
    return {_CONTROL} if os.path.lexists(os.path.join(path, _CONTROL)) else set()


def _read_marker(path: bytes) -> int | None:
    try:
        with open(os.path.join(path, MARKER), "rb") as file:
            return int(json.loads(file.read(4096))["system_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(path: bytes) -> bool:
    """Does the process that postmaster.pid names run? In doubt yes."""
    try:
        with open(os.path.join(path, b"postmaster.pid"), "rb") as file:
            pid = abs(int(file.read(64).split(b"\n", 1)[0]))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_at(path: bytes) -> int:
    """Free bytes where a path is or would be."""
    room = os.statvfs(_nearest(os.path.abspath(path)))
    return room.f_bavail * room.f_frsize


def _nearest(path: bytes) -> bytes:
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


__all__ = ["MARKER", "PhysicalSink", "check_path", "facts_of", "free_at", "space_map"]
