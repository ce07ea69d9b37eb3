"""A plain dump taken apart into statements and the rows of COPY, as psql takes it apart.

PURE. Source: PostgreSQL's src/fe_utils/psqlscan.l (quotes, nested comments, parentheses, bodies
between BEGIN and END) and handleCopyIn in src/bin/psql/copy.c (rows end with a line `\\.`). What
psql has beyond SQL does not exist here: no variables, and of the backslash commands only the pair
`\\restrict TOKEN` … `\\unrestrict TOKEN` that pg_dump writes. Fed with pieces cut anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

MIB = 1 << 20
MAX_STATEMENT = 64 * MIB
# Longer than any name or dollar tag that PostgreSQL keeps; what is longer is no dump.
_MAX_WORD = 1 << 16
_BOM = b"\xef\xbb\xbf"
_WORD = rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*"
_NEXT = re.compile(rb"[;'\"$\\()/\x00-]|" + _WORD)
_TAG = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$")
_TAG_BEGUN = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\Z")
_ESCAPED_STOP = re.compile(rb"['\\]")
_COMMENT_STOP = re.compile(rb"\*/|/\*")
_LINE_END = re.compile(rb"[\r\n]")
# Between two quotes of one string: blanks and comments with a line end among them (SQL standard).
_CONTINUED = re.compile(
    rb"(?:[ \t\f\v]|--[^\r\n]*)*[\r\n](?:[ \t\r\n\f\v]+|--[^\r\n]*[\r\n])*'",
)
_MAYBE_CONTINUED = re.compile(rb"(?:[ \t\r\n\f\v]+|--[^\r\n]*(?:[\r\n]|\Z)|-\Z)*\Z")
_NOTHING = re.compile(rb"(?:[ \t\r\n\f\v]+|--[^\r\n]*(?:[\r\n]|\Z))*\Z")
_MARKS = b"'\"$\\/-\x00"
_BLANK = b" \t\r\n\f\v"
_PAIR = re.compile(rb"\\(restrict|unrestrict) ([A-Za-z0-9]+)\r?\n?\Z")
_STANDARD = re.compile(
    rb"\s*set\s+standard_conforming_strings\s*(?:=|to)\s*'?(on|off)'?\s*;\s*\Z", re.IGNORECASE
)
_BODY_WORDS = frozenset((b"create", b"function", b"procedure", b"or", b"replace"))


class RefusedSQLError(ValueError):
    """Something in the dump that is not run. `line` is where, counted from 1."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line, self.why = line, why


class CutShortSQLError(RefusedSQLError):
    """The dump ends before what it began does."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, its semicolon included, without the comments before it.

    `copies` says that the rows for it follow: `COPY … FROM stdin`."""

    text: bytes
    line: int
    tokens: tuple[bytes, ...]
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """A run of rows as they stand in the dump, cut anywhere; `lines` ends of line are in it."""

    data: memoryview
    lines: int


@dataclass(frozen=True, slots=True)
class RowsEnd:
    """The rows of the COPY statement before are complete. `line` is that of the `\\.`."""

    line: int


Event = Statement | Rows | RowsEnd


class _Mode(Enum):
    SQL = auto()
    STRING = auto()
    ESCAPED = auto()
    AFTER_ESCAPED = auto()
    NAME = auto()
    DOLLAR = auto()
    LINE = auto()
    BLOCK = auto()
    COPY_HEAD = auto()
    COPY = auto()
    ENDED = auto()


class Lexer:
    """Takes pieces of a dump, yields what they complete. Memory: one statement, at most `limit`."""

    def __init__(self, *, limit: int = MAX_STATEMENT) -> None:
        self.line = 1  # of the first byte in the buffer
        self.standard = True  # standard_conforming_strings
        self._limit = limit
        self._mode = _Mode.SQL
        self._buffer = bytearray()
        self._at = 0
        self._final = False
        self._began = False  # whether a byte was seen: only before it a BOM may stand
        self._tag = b""
        self._depth = 0
        self._token: bytes | None = None
        self._any = False
        self._first = True  # rows: the line end before them is ours
        self._new_statement()

    def _new_statement(self) -> None:
        self._parens = self._bodies = 0
        self._words: list[bytes] = []
        self._word_count = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[Event]:
        """Take the next piece. Raises RefusedSQLError; nothing after it is to be run."""
        if not self._began:
            self._buffer += piece
            if len(self._buffer) < len(_BOM) and not self._final:
                return
            self._began = True
            if self._buffer.startswith(_BOM):
                del self._buffer[: len(_BOM)]
        elif self._mode is _Mode.COPY:
            yield from self._rows(bytes(piece))
            if self._mode is _Mode.COPY:
                return
        else:
            self._buffer += piece
        yield from self._run()

    def finish(self) -> Iterator[Event]:
        """Say that there is no more; CutShortSQLError when something is not complete."""
        self._final = True
        if not self._began:
            yield from self.feed(b"")
        elif self._mode is _Mode.COPY:
            yield from self._rows(b"")
        yield from self._run()
        if self._mode is _Mode.ENDED:
            return
        if self._mode not in (_Mode.SQL, _Mode.LINE):
            what = {
                _Mode.COPY: "the rows of a COPY",
                _Mode.COPY_HEAD: "a COPY",
                _Mode.BLOCK: "a comment",
            }.get(self._mode, "a quoted text")
            raise CutShortSQLError(self.line, f"the dump ends inside {what} that begins here")
        if _statement_start(self._buffer) < len(self._buffer):
            raise CutShortSQLError(self.line, "the dump ends inside a statement that begins here")
        if self._token is not None:
            raise CutShortSQLError(self._here(), "the dump ends before its \\unrestrict")

    def _here(self, at: int | None = None) -> int:
        return self.line + self._buffer.count(b"\n", 0, self._at if at is None else at)

    def _refuse(self, why: str, at: int | None = None) -> RefusedSQLError:
        return RefusedSQLError(self._here(at), why)

    def _run(self) -> Iterator[Event]:
        steps = {
            _Mode.SQL: self._sql,
            _Mode.STRING: self._string,
            _Mode.ESCAPED: self._escaped,
            _Mode.AFTER_ESCAPED: self._after_escaped,
            _Mode.NAME: self._name,
            _Mode.DOLLAR: self._dollar,
            _Mode.LINE: self._comment,
            _Mode.BLOCK: self._block,
            _Mode.COPY_HEAD: self._copy_head,
            _Mode.ENDED: self._ended,
        }
        while True:
            if self._mode is _Mode.COPY:
                rest = bytes(self._buffer)
                self._buffer.clear()
                self._at = 0
                yield from self._rows(rest)
                if self._mode is _Mode.COPY:
                    return
                continue
            done = steps[self._mode]()
            if isinstance(done, Statement):
                yield done
            elif not done:
                break
        if len(self._buffer) > self._limit:
            raise RefusedSQLError(
                self.line, f"a statement of more than {self._limit // MIB} MiB begins here"
            )

    # Each step returns True to go on, False for want of bytes, or a statement that is complete.

    def _sql(self) -> bool | Statement:
        buffer = self._buffer
        while found := _NEXT.search(buffer, self._at):
            at, end = found.span()
            self._at = end
            first = buffer[at]
            if first == 0x3B:  # ;
                if not self._parens and not self._bodies and (done := self._statement()):
                    return done
            elif first == 0x28:
                self._parens += 1
            elif first == 0x29:
                self._parens -= self._parens > 0
            elif first in _MARKS:
                went = self._mark(at, end)
                if went is not None:
                    return went
            elif end == len(buffer) and not self._final:
                return self._wait(at)
            elif end - at == 1 and first in b"eE" and buffer[end : end + 1] == b"'":
                self._mode, self._at = _Mode.ESCAPED, end + 1
                return True
            else:
                self._see_word(found[0])
        self._at = len(buffer)
        return False

    def _mark(self, at: int, end: int) -> bool | None:
        """A mark that may begin something else; None when it does not."""
        first, buffer = self._buffer[at], self._buffer
        if first == 0:
            raise self._refuse("a NUL byte", at)
        if first == 0x27:
            self._mode = _Mode.STRING if self.standard else _Mode.ESCAPED
            return True
        if first == 0x22:
            self._mode = _Mode.NAME
            return True
        if first == 0x5C:
            self._at = at
            return self._backslash()
        if first == 0x24:  # $
            if tag := _TAG.match(buffer, at):
                self._tag, self._mode, self._at = tag[0], _Mode.DOLLAR, tag.end()
                return True
            unsure = not self._final and _TAG_BEGUN.match(buffer, at)
            return self._wait(at) if unsure else None
        if end == len(buffer) and not self._final:
            return self._wait(at)
        pair = bytes(buffer[at : at + 2])
        if pair not in (b"--", b"/*"):
            return None
        self._mode = _Mode.LINE if pair == b"--" else _Mode.BLOCK
        self._depth, self._at = 1, at + 2
        return True

    def _wait(self, at: int) -> bool:
        """Want more bytes before what begins at `at` can be told."""
        self._at = at
        self._bound_word(at)
        return False

    def _bound_word(self, at: int) -> None:
        if len(self._buffer) - at > _MAX_WORD:
            raise self._refuse("a word of more than 64 KiB", at)

    def _see_word(self, word: bytes) -> None:
        """Notice the bodies of functions, whose semicolons end nothing (psqlscan.l, identifier)."""
        lower = word.lower()
        if lower in _BODY_WORDS and self._word_count < 4:
            self._words += [b""] * (self._word_count - len(self._words))
            self._words.append(lower)
        self._word_count += 1
        words = self._words
        if not words or words[0] != b"create" or len(words) < 2 or self._parens:
            return
        kind = words[1]
        if kind == b"or" and len(words) > 3 and words[2] == b"replace":
            kind = words[3]
        if kind not in (b"function", b"procedure"):
            return
        if lower == b"begin" or (lower == b"case" and self._bodies):
            self._bodies += 1
        elif lower == b"end" and self._bodies:
            self._bodies -= 1

    def _string(self) -> bool:
        # A doubled quote is an end and a beginning: the same for whoever looks for semicolons.
        return self._past(b"'")

    def _name(self) -> bool:
        return self._past(b'"')

    def _dollar(self) -> bool:
        return self._past(self._tag)

    def _past(self, mark: bytes) -> bool:
        found = self._buffer.find(mark, self._at)
        self._no_nul(len(self._buffer) if found < 0 else found)
        if found < 0:
            self._at = max(self._at, len(self._buffer) - len(mark) + 1)
            return False
        self._mode, self._at = _Mode.SQL, found + len(mark)
        return True

    def _no_nul(self, end: int) -> None:
        found = self._buffer.find(0, self._at, end)
        if found >= 0:
            raise self._refuse("a NUL byte", found)

    def _escaped(self) -> bool:
        while found := _ESCAPED_STOP.search(self._buffer, self._at):
            at = found.start()
            self._no_nul(at)
            self._at = at
            follows = self._buffer[at + 1 : at + 2]
            if not follows and not self._final:
                return False
            if found[0] == b"\\" or follows == b"'":
                if not follows:
                    break
                self._at = at + 2
                continue
            self._mode, self._at = _Mode.AFTER_ESCAPED, at + 1
            return True
        self._no_nul(len(self._buffer))
        if found is None:
            self._at = len(self._buffer)
        return False

    def _after_escaped(self) -> bool:
        if found := _CONTINUED.match(self._buffer, self._at):
            self._mode, self._at = _Mode.ESCAPED, found.end()
            return True
        if not self._final and _MAYBE_CONTINUED.match(self._buffer, self._at):
            return False
        self._mode = _Mode.SQL
        return True

    def _comment(self) -> bool:
        found = _LINE_END.search(self._buffer, self._at)
        if found is None:
            self._at = len(self._buffer)
            self._forget_comments()
            return False
        self._mode, self._at = _Mode.SQL, found.end()
        self._forget_comments()
        return True

    def _block(self) -> bool:
        while found := _COMMENT_STOP.search(self._buffer, self._at):
            self._at = found.end()
            self._depth += 1 if found[0] == b"/*" else -1
            if not self._depth:
                self._mode = _Mode.SQL
                return True
        self._at = max(self._at, len(self._buffer) - 1)
        return False

    def _forget_comments(self) -> None:
        """Give up comments before a statement: there may be any number of them."""
        if self._at > MIB and _NOTHING.match(self._buffer[: self._at]):
            keep = b"--" if self._mode is _Mode.LINE else b""
            self._drop(self._at)
            self._buffer[:0] = keep
            self._at = len(keep)

    def _drop(self, end: int) -> None:
        self.line += self._buffer.count(b"\n", 0, end)
        del self._buffer[:end]
        self._at = 0

    def _statement(self) -> Statement | None:
        """Take the statement that ends here out of the buffer; None for an empty one."""
        end = self._at
        begin = _statement_start(self._buffer[:end])
        text, line = bytes(self._buffer[begin:end]), self._here(begin)
        self._drop(end)
        self._new_statement()
        if text == b";":
            return None
        found = tuple(tokens(text, standard=self.standard))
        if said := _STANDARD.match(text):
            self.standard = said[1].lower() == b"on"
        copies = is_copy_in(found)
        if copies:
            self._mode = _Mode.COPY_HEAD
        self._any = True
        return Statement(text, line, found, copies)

    def _backslash(self) -> bool:
        at = self._at
        end = self._buffer.find(b"\n", at)
        if end < 0 and not self._final:
            self._bound_word(at)
            return False
        command = bytes(self._buffer[at:] if end < 0 else self._buffer[at : end + 1])
        at_start = _statement_start(self._buffer[:at]) == at
        at_line = at == 0 or self._buffer[at - 1] == 0x0A
        pair = _PAIR.match(command)
        if not pair or not at_start or not at_line:
            shown = command[:40].strip().decode("utf-8", "replace")
            raise self._refuse(f"a backslash command, which is never run: {shown!r}")
        if pair[1] == b"restrict":
            if self._any or self._token is not None:
                raise self._refuse("a second \\restrict, or one after the first statement")
            self._token = pair[2]
        elif self._token is None:
            raise self._refuse("an \\unrestrict without its \\restrict")
        elif self._token != pair[2]:
            raise self._refuse("an \\unrestrict with another token than its \\restrict")
        else:
            self._token = None
            self._mode = _Mode.ENDED
        self._drop(at + len(command))
        return True

    def _ended(self) -> bool:
        rest = bytes(self._buffer).lstrip(_BLANK)
        if rest:
            self._at = len(self._buffer) - len(rest)
            raise self._refuse("something stands after \\unrestrict, where a dump has ended")
        self._drop(len(self._buffer))
        return False

    def _copy_head(self) -> bool:
        end = self._buffer.find(b"\n")
        head = bytes(self._buffer if end < 0 else self._buffer[:end])
        if head.strip(b" \t\r"):
            raise self._refuse("something stands behind COPY … FROM stdin on its line", 0)
        if end < 0:
            return False
        self._drop(end)  # the line end stays: rows end where a line begins with the mark
        self._mode, self._first = _Mode.COPY, True
        self.line += 1
        return True

    def _rows(self, piece: bytes) -> Iterator[Event]:
        data = bytes(self._buffer) + piece if self._buffer else piece
        begin = 0
        if self._first and data:
            self._first, begin = False, 1
            # So that the line end in front is not given away while it may be the mark's.
            if len(data) < 2 and not self._final:
                self._buffer[:], self._first = data, True
                return
        at = data.find(b"\n\\.")
        while at >= 0:
            after = at + 3
            if data[after : after + 1] == b"\r":
                after += 1
            if data[after : after + 1] == b"\n" or (after == len(data) and self._final):
                yield from self._rows_of(data, begin, at + 1)
                self.line += 1
                self._mode = _Mode.SQL
                self._buffer[:] = data[after + 1 :]
                self._at = 0
                yield RowsEnd(self.line - 1)
                return
            if after == len(data):
                break
            at = data.find(b"\n\\.", at + 1)
        keep = data.rfind(b"\n", max(len(data) - 4, 0))
        if keep < 0:
            keep = len(data)
        if begin and keep == 0:  # still nothing but the line end in front and what may be the mark
            self._buffer[:], self._first = data, True
            return
        yield from self._rows_of(data, begin, keep)
        self._buffer[:] = data[keep:]

    def _rows_of(self, data: bytes, begin: int, end: int) -> Iterator[Rows]:
        if end > begin:
            lines = data.count(b"\n", begin, end)
            self.line += lines
            yield Rows(memoryview(data)[begin:end], lines)


_LEAD = re.compile(rb"[ \t\r\n\f\v]+|--[^\r\n]*")


def _statement_start(text: bytes | bytearray, at: int = 0) -> int:
    """Where the blanks and comments that begin at `at` end."""
    while at < len(text):
        if found := _LEAD.match(text, at):
            at = found.end()
        elif text.startswith(b"/*", at):
            depth, at = 1, at + 2
            while depth:
                mark = _COMMENT_STOP.search(text, at)
                if mark is None:
                    return len(text)
                depth += 1 if mark[0] == b"/*" else -1
                at = mark.end()
        else:
            break
    return at


_SIMPLE = re.compile(rb"[0-9][0-9.eE+]*|::|=>|" + _WORD + rb"|.", re.DOTALL)
_PLAIN_STRING = re.compile(rb"'[^']*(?:''[^']*)*'")
_ESCAPED_STRING = re.compile(rb"'(?:[^'\\]|\\.|'')*'", re.DOTALL)
_QUOTED_NAME = re.compile(rb'"[^"]*(?:""[^"]*)*"')
MOST_TOKENS = 100_000


def tokens(text: bytes, *, standard: bool = True) -> Iterator[bytes]:
    """The tokens of one statement without blanks and comments; words in lower case.

    Strings keep their quotes; a dollar-quoted one is `$$`. At most 100,000 are given.
    """
    at, given = 0, 0
    while at < len(text) and given < MOST_TOKENS:
        at = _statement_start(text, at)
        if at >= len(text):
            return
        token, at = _token(text, at, standard)
        given += 1
        yield token


def _token(text: bytes, at: int, standard: bool) -> tuple[bytes, int]:
    first = text[at : at + 1]
    found: re.Match[bytes] | None = None
    if first == b"'":
        found = (_PLAIN_STRING if standard else _ESCAPED_STRING).match(text, at)
    elif first in b"eE" and text[at + 1 : at + 2] == b"'":
        found = _ESCAPED_STRING.match(text, at + 1)
        if found:
            return b"E" + found[0], found.end()
    elif first == b'"':
        found = _QUOTED_NAME.match(text, at)
    elif first == b"$" and (tag := _TAG.match(text, at)):
        end = text.find(tag[0], tag.end())
        return b"$$", len(text) if end < 0 else end + len(tag[0])
    if found:
        return found[0], found.end()
    simple = _SIMPLE.match(text, at)
    assert simple is not None
    return simple[0].lower(), simple.end()


def is_copy_in(found: tuple[bytes, ...]) -> bool:
    """Say whether a statement is a COPY that takes its rows from where the statement came from."""
    if not found or found[0] != b"copy":
        return False
    depth = 0
    for number, token in enumerate(found):
        depth += (token == b"(") - (token == b")")
        if token == b"from" and not depth:
            return found[number + 1 : number + 2] == (b"stdin",)
    return False
