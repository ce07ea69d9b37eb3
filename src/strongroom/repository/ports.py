"""What stands at the two ends of the engine: Source → Repository → Sink.

A Source pushes content and entries into a `Session`; a Sink pulls them from a
`SnapshotReader`. Everything that can be backed up is a tree of entries sorted
by raw path: a vault's files, and a database's dump streams beside its facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from strongroom.errors import StrongroomError
from strongroom.format.content import Extent
from strongroom.format.tree import Entry
from strongroom.progress import Progress

Buffer = bytes | bytearray | memoryview
Take = Callable[[Sequence[int], Sequence[memoryview]], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """A part of the source or target that could not be taken or set: raw path and reason."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """Content that rests in the repository.

    `content` is what goes into `Entry.content`; `ids` is the concatenation of every 32-byte chunk
    id that it relies on (keep it beside `content` to offer the same content again without
    reading); `size` is the logical length in bytes.
    """

    content: bytes
    ids: bytes
    size: int


class ContentWriter(Protocol):
    """One stream of bytes being cut, deduplicated and stored. Used by one thread."""

    def feed_from(self, readinto: Callable[[memoryview], int]) -> int:
        """Call `readinto` on the engine's kept buffers until it returns 0; return the bytes taken."""

    def write(self, data: Buffer) -> None:
        """Take `data`; it may be reused by the caller on return."""

    def seek(self, offset: int) -> None:
        """Leave a hole: what comes next stands at logical `offset` (never before what was written)."""

    def finish(self, *, size: int | None = None) -> Stored:
        """End the stream; `size` is the logical size where a hole ends it."""


class Lane(Protocol):
    """One thread's way into the session: frames of one lane hold consecutive content."""

    def put_small(self, contents: Sequence[Buffer]) -> list[bytes]:
        """Store each buffer (0 < length ≤ SMALL_FILE) as one whole chunk; return the ids in order.

        `format.content.whole(id)` makes the `Entry.content`. Buffers may be reused on return.
        """

    def put_run(self, run: memoryview, lengths: Sequence[int]) -> list[bytes]:
        """Store what `put_small` would of chunks that lie back to back in `run`, of these lengths."""

    def put_pages(self, run: memoryview) -> bytes:
        """Store `run` in pieces of 64 KiB, each one chunk, the last as it is; return their 32-byte
        ids, joined. For data files of PostgreSQL, a run at a time; every run of a file but its last
        is a multiple of 64 KiB, and may go through another lane. Reusable on return."""

    def pages_content(self, ids: bytes, size: int) -> Stored:
        """The content of a file of `size` bytes, from what `put_pages` returned for its runs."""

    def content(self) -> ContentWriter:
        """Begin a stream, cut by the session's content-defined chunker."""


class Tree(Protocol):
    """The entries of a snapshot, added in strictly ascending raw path order, by one thread."""

    def add(self, entry: Entry) -> bytes:
        """Add an entry; return its encoded record (see `add_record`)."""

    def add_record(self, path: bytes, record: bytes) -> None:
        """Add an entry that `add` returned before, without encoding it again."""

    def add_records(self, paths: list[bytes], records: list[bytes]) -> None:
        """Add neighbours, one record for each path."""

    def mark(self) -> bytes:
        """After the commit: a mark of the whole tree, for `adopt` in a later run."""

    def adopt(self, mark: bytes) -> bool:
        """Be the tree of that mark, before anything was added; False if not all of it is here."""


class Session(Protocol):
    """One run of writing. Chunks that the repository has are not stored again."""

    @property
    def tree(self) -> Tree:
        """The snapshot's tree."""

    def lane(self) -> Lane:
        """Open one more way in; one per thread. Lanes are closed by the session."""

    def reuse(self, ids: Sequence[bytes]) -> list[bool]:
        """For each `Stored.ids` (concatenated ids) of an earlier run: is all of it still here?

        True records the reliance; False means the content must be read and stored anew.
        """


@dataclass(frozen=True, slots=True)
class Taken:
    """What a source put into a session.

    `facts` only readers open; `log` stands in the commit record: which log a prune must leave for it.
    """

    files: int
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    log: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Something that can be backed up."""

    @property
    def name(self) -> str:
        """The name it is configured under: letters, digits, `.`, `_`, `-`."""

    @property
    def kind(self) -> str:
        """ "files" or "postgres"."""

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push everything into the session. May be called again, with another session, on the
        same object. Problems with parts are returned, never raised; faults of the whole are raised."""

    def settled(self) -> None:
        """The snapshot is committed: now a change cache may be replaced."""


class SnapshotReader(Protocol):
    """One snapshot, opened for reading. Safe for many threads."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the source said of itself when it was backed up."""

    def entries(self, under: bytes = b"") -> Iterator[Entry]:
        """Yield entries in raw path order; with `under`, that entry and everything below it."""

    def find(self, path: bytes) -> Entry | None:
        """Return one entry."""

    def stream(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the content in order, holes as zeros, prefetching ahead."""

    def contents(
        self, entries: Iterable[Entry]
    ) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        """Yield each entry with its pieces (logical offset, bytes), in order, prefetching across
        entries. Holes are not covered by pieces. A piece is valid until the next one is taken.
        Entries without content come with no pieces. Damaged content raises `Damaged` from the
        pieces of its own entry only; the caller may go on with the next entry."""

    def parts(self, entry: Entry) -> Iterator[Sequence[Extent]]:
        """Yield an entry's extents in order, some at a time; none reaches past its size.
        ValueError, StrongroomError when they cannot be had."""

    def scatter(
        self, ids: Sequence[bytes], take: Take
    ) -> Callable[[], Mapping[int, StrongroomError]]:
        """Start fetching chunks whose order does not matter. `take` is called with the numbers of
        some ids and their verified chunks, which are valid until it returns; on threads of the
        reader, several at a time, each number once. The returned call waits for the last of them
        and says of which ids the chunk cannot be had, and why; what `take` raised, it raises."""

    def chunk_id(self, data: Buffer) -> bytes:
        """The id of the chunk that these bytes are: what stands at the target already need not be
        fetched."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sink wrote: counts, bytes, parts that are not as they were, facts to report."""

    files: int
    size: int
    problems: Sequence[Problem] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Somewhere a snapshot can be restored to."""

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Check that the restore can be carried out, changing nothing; Refused if not.

        Returns the plan, as JSON values, for `--dry-run`.
        """

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Write the snapshot, verify what was written, and say what could not be set."""
