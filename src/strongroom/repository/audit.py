"""The audit log: an append-only Merkle tree of runs (RFC 6962) in plain objects.

Rule: a leaf is put if absent under the next number, so that of many writers at once each gets a
number of its own, and none is left out. Each leaf is signed by its writer over its run, its number
and the frontier of all leaves before it: who changes, drops, cuts or reorders one contradicts every
later one. The newest leaves are held by checkpoints only, and an older state of the whole log by
nothing in it: for that, a checkpoint is kept elsewhere (a *pin*).

An append reads one leaf and puts two small objects, however long the log is. Tiles and checkpoints
only spare reading: whoever crosses a border puts the tile, and the next one does it if he died.
Nothing here deletes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from strongroom.errors import (
    AlreadyExists,
    Busy,
    Damaged,
    ObjectMissing,
    StorageDenied,
    StrongroomError,
    Unreachable,
)
from strongroom.format import audit as names
from strongroom.format import merkle, record
from strongroom.format.audit import Checkpoint, open_checkpoint, sign_checkpoint
from strongroom.format.record import RecordKey, canonical
from strongroom.format.run import Run
from strongroom.repository.repository import Repository
from strongroom.repository.signing import open_document, sign_document
from strongroom.storage.base import Storage

_DOMAIN = b"strongroom audit leaf 1"
_ATTEMPTS = 10_000  # each that fails is another writer's success
_RELIST = 8
_FEW = 32  # leaves of one tile that are read one by one rather than with it
_READERS = 8
_TILES_AT_ONCE = 4
_STRAY = 4096  # so many tiles may be missing before one; a further one is not believed
_IS_DAMAGED = " of the audit log is damaged: "
_OUT_OF_REACH = (Unreachable, StorageDenied)
_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf whose signature holds. `document` is the entry that the tree hashes."""

    number: int
    run: Run
    before: tuple[bytes, ...]
    document: bytes

    @property
    def hash(self) -> bytes:
        """Its leaf hash."""
        return merkle.leaf_hash(self.document)

    @property
    def before_root(self) -> bytes:
        """The root over all leaves before it, as its writer says."""
        return merkle.root_of(self.before)

    @property
    def after(self) -> Head:
        """The tree that ends with it, as its writer says."""
        return Head(self.number, self.before).grown(self.hash)


@dataclass(frozen=True, slots=True)
class Head:
    """How far a log goes, and all that is needed to go on."""

    size: int
    frontier: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """The root over its leaves."""
        return merkle.root_of(self.frontier)

    def grown(self, leaf: bytes) -> Head:
        """With one more leaf, given by its hash."""
        return Head(self.size + 1, merkle.grown(self.frontier, self.size, leaf))


@dataclass(frozen=True, slots=True)
class Fault:
    """An object of the log that is not as it was written, or a pin that the log contradicts."""

    object: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a verification found. `unread` are objects that could not be reached, with the reason.

    `roots` are by size, where they are known; `faults` in the order of the log.
    """

    size: int = 0
    frontier: tuple[bytes, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    unread: dict[str, StrongroomError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    roots: dict[int, bytes] = field(default_factory=dict)
    checkpoints: int = 0
    pins: int = 0

    @property
    def whole(self) -> bool:
        """Whether all was read, and nothing is wrong with it."""
        return not self.faults and not self.unread


class AuditLog:
    """The log of one repository. Needs no key that reads data. One instance for one thread.

    `before` and `head` are the log as the last append met and left it. `warnings` are contradictions that
    it met on its way; `verify` tells them in full.
    """

    def __init__(self, repository: Repository, *, storage: Storage | None = None) -> None:
        self._storage = storage or repository.storage
        self._keyset = repository.keys.current
        self._seams = repository.seams
        self._atomic = repository.identity.capabilities.put_if_absent
        self._readers = _READERS if repository.settings.putters > 1 else 1
        self._records = [
            RecordKey(keyset.repository, keyset.catalogue_key)
            for _, keyset in sorted(repository.keys.keysets.items(), reverse=True)
        ]
        self._head: Head | None = None
        self.before = self.head = Head(0, ())
        self._missing: list[int] = []
        self.warnings: list[str] = []

    @property
    def repository_id(self) -> str:
        """Whose log it is, in hex."""
        return self._keyset.repository.hex()

    # -- appending -------------------------------------------------------------------------

    def append(self, run: Run) -> int:
        """Put a run as the next leaf, durably, and return its number.

        Whatever is raised but Damaged, nobody knows whether it was put: look for it (`Run.same`)
        before it is appended again.
        """
        run = replace(run, writer=self._keyset.writer_name)
        head = self._head or self.find_head()
        self._head = None
        for attempt in range(1, _ATTEMPTS + 1):
            document = self._document(run, head)
            other = self._put_leaf(head.size, document)
            if other is None:
                break
            head = head.grown(merkle.leaf_hash(other))
            if attempt % _RELIST == 0:  # what was listed is old: do not walk after it
                found = self.find_head()
                head = found if found.size > head.size else head
        else:
            raise Busy(f"The audit log grew {_ATTEMPTS} times while one leaf was to be put.")
        number = head.size
        self.before, self.head = head, head.grown(merkle.leaf_hash(document))
        self._head = self.head
        self._put_checkpoint(self.head)
        if (number + 1) % names.TILE == 0:
            self._missing.append(number // names.TILE)
        self._put_tiles()
        return number

    def signed(self, head: Head) -> Checkpoint:
        """Sign a state of the log as it was read."""
        return sign_checkpoint(self._keyset, head.size, head.frontier, self._seams.now())

    def checkpoint(self, head: Head | None = None) -> Checkpoint:
        """Sign how far the log goes, `head` or now, and put that, if nobody has; verify first."""
        made = self._put_checkpoint(head or self.find_head())
        if self.warnings:
            raise Damaged(
                self.warnings[-1],
                means="What is in the log now is not all that was ever in it.",
                do="`strongroom audit verify` names what is missing.",
            )
        return made

    def find_head(self) -> Head:
        """How far the log goes, by its newest leaf, or else by a checkpoint; Damaged."""
        size = self.size()
        if size == 0:
            return Head(0, ())
        try:
            return self._read_leaf(size - 1).after
        except (Damaged, ObjectMissing) as fault:
            tile = (size - 1) // names.TILE
            kept = self._try_tile(tile)
            if kept is not None:
                return self._parse(names.tile_name(tile), kept[-1], size - 1).after
            told = self._read_checkpoint(size)
            if told is not None:
                return Head(size, told.frontier)
            raise Damaged(
                f"The newest leaf of the audit log, {names.leaf_name(size - 1)}, does not open,"
                f" and no checkpoint tells of it: {fault.what}",
                means="Backups are untouched. Nothing can be written behind it in the log; what runs"
                " is kept on this machine until then.",
                do="Bring the object back from a copy of the repository.",
            ) from None

    def size(self) -> int:
        """How many leaves there are, by what the store lists."""
        tiles = {
            tile for tile in map(names.tile_number, self._list(names.TILES)) if tile is not None
        }
        # What a store lists is its word alone: one name far off must not make millions of leaves.
        at = max((tile for tile in tiles if tile < len(tiles) + _STRAY), default=-1) + 1
        while True:
            numbers = _numbers(names.leaf_number, self._list(names.folder(at)))
            if not numbers:
                size = at * names.TILE
                break
            size = max(numbers) + 1
            if size % names.TILE:
                break
            at += 1
        missing = (tile for tile in range(size // names.TILE) if tile not in tiles)
        self._missing = list(itertools.islice(missing, _TILES_AT_ONCE))
        return size

    def _document(self, run: Run, head: Head) -> bytes:
        body = {
            **run.as_json(),
            "number": head.size,
            "before": [part.hex() for part in head.frontier],
            "epoch": self._keyset.epoch,
        }
        return sign_document(self._keyset, _DOMAIN, body)

    def _put_leaf(self, number: int, document: bytes) -> bytes | None:
        """Put a leaf; None when it is there, else the document that has the number."""
        name = names.leaf_name(number)
        data = self._seal(record.AUDIT_LEAF, name, document)
        if not self._atomic and (there := self._look(name)) is not None:
            return there
        try:
            self._storage.put(name, data, if_absent=True)
        except AlreadyExists:
            there = self._get(name, record.AUDIT_LEAF)
            return None if there == document else there  # ours: the adapter put it twice
        except StrongroomError:
            if self._ours(name, document):  # the answer was lost, the leaf was not
                return None
            raise
        if not self._atomic:
            there = self._get(name, record.AUDIT_LEAF)
            return None if there == document else there
        return None

    def _look(self, name: str) -> bytes | None:
        try:
            return self._get(name, record.AUDIT_LEAF)
        except ObjectMissing:
            return None

    def _ours(self, name: str, document: bytes) -> bool:
        try:
            return self._look(name) == document
        except StrongroomError:
            return False

    def _put_checkpoint(self, head: Head) -> Checkpoint:
        """Put a checkpoint, if none is there; one that tells another story is a warning.

        The leaf is there already, so that a store which fails now costs nothing but this.
        """
        made = self.signed(head)
        name = names.checkpoint_name(head.size)
        data = self._seal(record.AUDIT_CHECKPOINT, name, made.note.encode())
        try:
            there = None if self._atomic else self._read_checkpoint(head.size)
            if there is None:
                try:
                    self._storage.put(name, data, if_absent=True)
                except AlreadyExists:
                    there = self._read_checkpoint(head.size)
        except _OUT_OF_REACH:
            return made
        if there is not None and there.root != head.root:
            self.warnings.append(
                f"the audit log had other leaves once: {name}, signed by {there.writer} at"
                f" {there.time.isoformat(timespec='seconds')}, tells of another tree of"
                f" {head.size} leaves; `strongroom audit verify` tells more"
            )
        return made

    def _put_tiles(self) -> None:
        """Bundle what is complete and is not bundled yet; a cache, so no fault matters here."""
        todo, self._missing = self._missing[:_TILES_AT_ONCE], self._missing[_TILES_AT_ONCE:]
        for tile in todo:
            first = tile * names.TILE
            try:
                leaves = self._each(self._read_leaf, range(first, first + names.TILE))
                name = names.tile_name(tile)
                body = b"\n".join(leaf.document for leaf in leaves)
                data = self._seal(record.AUDIT_TILE, name, body)
                self._storage.put(name, data, if_absent=True)
            except StrongroomError:
                continue

    # -- reading ---------------------------------------------------------------------------

    def leaves(self, first: int = 0) -> Iterator[tuple[int, Run]]:
        """Runs from number `first` on, in order; Damaged at the first that is not as written."""
        for leaf in self.entries(first):
            yield leaf.number, leaf.run

    def entries(
        self,
        first: int = 0,
        *,
        missed: Callable[[int, StrongroomError], None] | None = None,
    ) -> Iterator[Leaf]:
        """Leaves from number `first` on. `missed` is told of what is not there, damaged or out of
        reach, and the others follow; without it that is raised."""
        size = self.size()
        for tile in range(first // names.TILE, -(-size // names.TILE)):
            begin, end = tile * names.TILE, (tile + 1) * names.TILE
            numbers = range(max(first, begin), min(size, end))
            kept = self._try_tile(tile) if len(numbers) > _FEW and end <= size else None
            if kept is not None:
                leaves = self._try_parse(tile, kept, numbers)
                if leaves is not None:
                    yield from leaves
                    continue
            for number, leaf in zip(numbers, self._each(self._attempt_leaf, numbers), strict=True):
                if isinstance(leaf, Leaf):
                    yield leaf
                elif missed is None:
                    raise leaf
                else:
                    missed(number, leaf)

    def leaf(self, number: int) -> Leaf:
        """One leaf; ObjectMissing, Damaged."""
        return self._read_leaf(number)

    def read_pin(self, text: str) -> Checkpoint:
        """Read a checkpoint that was kept elsewhere; Damaged when nobody of here signed it."""
        try:
            return open_checkpoint(text, self._keyset.repository, self._keyset.admin_public)
        except ValueError as fault:
            raise Damaged(
                f"The pin is not one of this repository's checkpoints: {fault}.",
                means="It proves nothing about the log; backups and log are untouched.",
                do="Take the file that `strongroom audit pin` wrote, for this repository.",
            ) from None

    def _read_leaf(self, number: int) -> Leaf:
        name = names.leaf_name(number)
        return self._parse(name, self._get(name, record.AUDIT_LEAF), number)

    def _attempt_leaf(self, number: int) -> Leaf | StrongroomError:
        try:
            return self._read_leaf(number)
        except StrongroomError as fault:
            return fault

    def _try_tile(self, tile: int) -> list[bytes] | None:
        """The documents of a tile, if it is there and opens."""
        try:
            return self._read_tile(tile)
        except (Damaged, ObjectMissing):
            return None

    def _try_parse(self, tile: int, kept: list[bytes], numbers: range) -> list[Leaf] | None:
        name = names.tile_name(tile)
        try:
            return [self._parse(name, kept[each % names.TILE], each) for each in numbers]
        except Damaged:
            return None

    def _read_tile(self, tile: int) -> list[bytes]:
        name = names.tile_name(tile)
        kept = self._get(name, record.AUDIT_TILE).split(b"\n")
        if len(kept) != names.TILE:
            raise _damaged(name, f"it holds {len(kept)} leaves")
        return kept

    def _read_checkpoint(self, size: int) -> Checkpoint | None:
        """The checkpoint of a size, if there is one that opens."""
        try:
            return self._open_checkpoint(size)
        except (Damaged, ObjectMissing):
            return None

    def _open_checkpoint(self, size: int) -> Checkpoint:
        name = names.checkpoint_name(size)
        body = self._get(name, record.AUDIT_CHECKPOINT)
        try:
            keyset = self._keyset
            found = open_checkpoint(body.decode(), keyset.repository, keyset.admin_public)
            if found.size != size:
                raise ValueError(f"it tells of {found.size} leaves")
        except ValueError as fault:
            raise _damaged(name, str(fault)) from None
        return found

    def _parse(self, name: str, document: bytes, number: int) -> Leaf:
        """A leaf out of its document; Damaged when it is not the one of that number."""
        try:
            body = open_document(self._keyset, _DOMAIN, document)
            if canonical(json.loads(document)) != document:
                raise ValueError("it is not as it was written")
            if body["number"] != number:
                raise ValueError(f"it is leaf {body['number']}, in the place of leaf {number}")
            before = tuple(bytes.fromhex(part) for part in body["before"])
            if len(before) != number.bit_count() or any(len(p) != merkle.HASH for p in before):
                raise ValueError("it does not say what was before it")
            return Leaf(number, Run.from_json(body), before, document)
        except (ValueError, KeyError, TypeError) as fault:
            raise _damaged(name, str(fault) or type(fault).__name__) from None

    def _get(self, name: str, kind: bytes) -> bytes:
        data = self._storage.get(name)
        for key in self._records:
            try:
                return key.open(data, name, kind)[1]
            except ValueError:
                continue
        raise _damaged(name, "it does not open: it was changed, or put there by somebody else")

    def _seal(self, kind: bytes, name: str, body: bytes) -> bytes:
        return self._records[0].seal(kind, name, body, nonce=self._seams.random(12))

    def _list(self, prefix: str) -> list[str]:
        return [entry.name for entry in self._storage.list(prefix)]

    def _each(self, read: Callable[[_T], _U], what: Sequence[_T]) -> list[_U]:
        """The same, several at once: each is a request of its own."""
        if self._readers == 1 or len(what) < 2:
            return [read(one) for one in what]
        with ThreadPoolExecutor(self._readers) as pool:
            return list(pool.map(read, what))

    # -- verifying -------------------------------------------------------------------------

    def verify(self, pins: Iterable[Checkpoint] = (), *, every: bool = True) -> Report:
        """Read the log and compare it with itself, its checkpoints and `pins`.

        `every` reads each leaf and checkpoint object too; otherwise what tiles hold is read from
        them, and objects are only looked for.
        """
        return _Verification(self, every=every).run(pins)


class _Verification:
    """One look at the whole log."""

    def __init__(self, log: AuditLog, *, every: bool) -> None:
        self._log, self._every = log, every
        self._report = Report()
        self._leaves: set[int] = set()
        self._tiles: set[int] = set()
        self._checkpoints: list[int] = []

    def run(self, pins: Iterable[Checkpoint]) -> Report:
        self._list()
        self._walk()
        self._compare_checkpoints()
        for pin in pins:
            self._report.pins += 1
            self._compare(pin, f"the pin of {pin.size} leaves", pinned=True)
        return self._report

    def _list(self) -> None:
        """What tells of a leaf was put behind it: listed before it, the leaf must be there."""
        log = self._log
        self._checkpoints = _numbers(names.checkpoint_size, log._list(names.CHECKPOINTS))
        self._tiles = set(_numbers(names.tile_number, log._list(names.TILES)))
        self._leaves = set(_numbers(names.leaf_number, log._list(names.LEAVES)))
        ends = [max(self._leaves, default=-1) + 1, (max(self._tiles, default=-1) + 1) * names.TILE]
        self._report.size = max(ends)

    def _walk(self) -> None:
        """Every leaf in order, each against the frontier of all before it."""
        report = self._report
        head, sure = Head(0, ()), True
        report.roots[0] = head.root
        for number, leaf in self._in_order():
            if leaf is None:  # told already; what is behind it says what it was
                sure = False
                told = self._log._read_checkpoint(number + 1)
                head = Head(number + 1, told.frontier) if told else Head(number + 1, ())
                continue
            if sure and leaf.before != head.frontier:
                self._find(
                    names.leaf_name(number),
                    "it was written behind other leaves than are before it now: one of them was"
                    " changed, left out, put in or moved",
                )
            if not sure:
                report.roots[number] = merkle.root_of(leaf.before)
            head, sure = leaf.after, True
            report.roots[head.size] = head.root
        report.frontier = head.frontier if sure else ()

    def _in_order(self) -> Iterator[tuple[int, Leaf | None]]:
        size, after = self._report.size, 0
        for tile in sorted({number // names.TILE for number in self._leaves} | self._tiles):
            begin, end = tile * names.TILE, min(size, (tile + 1) * names.TILE)
            if begin > after:  # however many: nothing of them is there
                self._find(
                    names.folder(after // names.TILE), f"leaves {after} to {begin - 1} are gone"
                )
                yield begin - 1, None
            after = end
            kept = self._tile(tile) if tile in self._tiles else None
            wanted = [
                number
                for number in range(begin, end)
                if number in self._leaves and (self._every or kept is None)
            ]
            found = dict(zip(wanted, self._log._each(self._document, wanted), strict=True))
            for number in range(begin, end):
                yield number, self._judge(number, found.get(number), kept, number - begin)

    def _judge(
        self,
        number: int,
        own: bytes | StrongroomError | None,
        kept: list[bytes] | None,
        at: int,
    ) -> Leaf | None:
        """The leaf of a number: the tile's, or else its own object's; and what is wrong with both."""
        name, tile = names.leaf_name(number), names.tile_name(number // names.TILE)
        held = "" if kept is None else "; its tile still holds it"
        if number not in self._leaves:
            self._find(name, f"the leaf is gone{held}")
        elif isinstance(own, _OUT_OF_REACH):
            self._report.unread[name] = own
        elif isinstance(own, StrongroomError):
            self._find(name, _why(own) + held)
        elif isinstance(own, bytes) and kept is not None and own != kept[at]:
            self._find(
                name,
                f"it is another one than its tile, {tile}, holds",
            )
        choices = [(tile, kept[at])] if kept is not None else []
        choices += [(name, own)] if isinstance(own, bytes) else []
        fault: Damaged | None = None
        for place, document in choices:
            try:
                return self._log._parse(place, document, number)
            except Damaged as error:
                fault = fault or error
        if fault is not None:
            self._find(name, _why(fault))
        return None

    def _document(self, number: int) -> bytes | StrongroomError:
        try:
            return self._log._get(names.leaf_name(number), record.AUDIT_LEAF)
        except StrongroomError as fault:
            return fault

    def _tile(self, tile: int) -> list[bytes] | None:
        name = names.tile_name(tile)
        try:
            return self._log._read_tile(tile)
        except _OUT_OF_REACH as fault:
            self._report.unread[name] = fault
        except StrongroomError as fault:
            self._find(name, _why(fault))
        return None

    def _compare_checkpoints(self) -> None:
        size = self._report.size
        read = [
            at
            for at in sorted(self._checkpoints)
            if self._every or at > size - names.TILE or at % names.TILE == 0
        ]
        self._report.checkpoints = len(read)
        for at, found in self._opened(read):
            name = names.checkpoint_name(at)
            if isinstance(found, Checkpoint):
                self._compare(found, name, pinned=False)
            elif isinstance(found, _OUT_OF_REACH):
                self._report.unread[name] = found
            else:
                self._find(name, _why(found))

    def _opened(self, sizes: Sequence[int]) -> Iterator[tuple[int, Checkpoint | StrongroomError]]:
        """Some at a time: there are as many as leaves."""
        for begin in range(0, len(sizes), names.TILE):
            some = sizes[begin : begin + names.TILE]
            yield from zip(some, self._log._each(self._checkpoint, some), strict=True)

    def _checkpoint(self, size: int) -> Checkpoint | StrongroomError:
        try:
            return self._log._open_checkpoint(size)
        except StrongroomError as fault:
            return fault

    def _compare(self, told: Checkpoint, name: str, *, pinned: bool) -> None:
        report = self._report
        signed = f"{told.writer} at {told.time.isoformat(timespec='seconds')}"
        if told.size > report.size:
            self._find(
                name,
                f"signed by {signed}, it tells of {told.size} leaves, and there are {report.size}: "
                + ("the log was cut, or is an older state of itself" if pinned else "it was cut"),
            )
        elif told.size not in report.roots:
            report.notes.append(f"{name} cannot be compared: the leaf before it was not read")
        elif report.roots[told.size] != told.root:
            self._find(
                name,
                f"signed by {signed}, it tells of {told.size} other leaves than are there now:"
                " the log was rewritten",
            )

    def _find(self, name: str, reason: str) -> None:
        self._report.faults.append(Fault(name, reason))


def _numbers(number: Callable[[str], int | None], listed: Iterable[str]) -> list[int]:
    return [found for found in map(number, listed) if found is not None]


def _why(fault: StrongroomError) -> str:
    return fault.what.rpartition(_IS_DAMAGED)[2].rstrip(".")


def _damaged(name: str, why: str) -> Damaged:
    return Damaged(
        f"{name}{_IS_DAMAGED}{why}.",
        means="Backups are untouched. What it told of is not proved any more.",
        do="`strongroom audit verify` tells all; bring the object back from a copy of the repository.",
    )


__all__ = ["AuditLog", "Fault", "Head", "Leaf", "Report"]
