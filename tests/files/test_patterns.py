"""Include and exclude patterns: the table is what docs/reference/files.md promises."""

from __future__ import annotations

import pytest

from strongroom.errors import ConfigError
from strongroom.files.patterns import Patterns, Verdict


@pytest.mark.parametrize(
    ("pattern", "path", "directory", "excluded"),
    [
        (b"*.tmp", b"a.tmp", False, True),
        (b"*.tmp", b"deep/er/a.tmp", False, True),
        (b"*.tmp", b"a.tmpx", False, False),
        (b"cache/", b"x/cache", True, True),
        (b"cache/", b"x/cache", False, False),
        (b"/cache", b"cache", False, True),
        (b"/cache", b"x/cache", False, False),
        (b"a/*.log", b"a/b.log", False, True),
        (b"a/*.log", b"a/b/c.log", False, False),
        (b"a/**/c", b"a/c", False, True),
        (b"a/**/c", b"a/b/b/c", False, True),
        (b"a/**", b"a", True, False),
        (b"a/**", b"a/b", False, True),
        (b"**/x/y", b"x/y", False, True),
        (b"**/x/y", b"q/x/y", False, True),
        (b"?.x", b"\xff.x", False, True),
        (b"?.x", b"/.x", False, False),
        (b"[a-c]1", b"b1", False, True),
        (b"[!a-c]1", b"b1", False, False),
        (b"[!a-c]1", b"\n1", False, True),
        (b"[]]", b"]", False, True),
        (rb"\*", b"*", False, True),
        (rb"\*", b"x", False, False),
        (b"a+b(c)", b"a+b(c)", False, True),
        (b"new\nline*", b"new\nline\n", False, True),
        (b"\\!x", b"!x", False, True),
    ],
)
def test_exclude(pattern: bytes, path: bytes, directory: bool, excluded: bool) -> None:
    patterns = Patterns(exclude=[pattern])
    if directory:
        taken = patterns.directory(path, included=False)[0] is not Verdict.SKIP
    else:
        taken = patterns.file(path, included=False)
    assert taken is not excluded


def test_the_last_exclude_wins_and_may_take_back() -> None:
    patterns = Patterns(exclude=[b"*.log", b"!keep.log", b"/a/keep.log"])
    assert not patterns.file(b"x.log", included=False)
    assert patterns.file(b"b/keep.log", included=False)
    assert not patterns.file(b"a/keep.log", included=False)


def test_includes_are_anchored_and_lead_through_their_parents() -> None:
    patterns = Patterns(include=[b"a/b/", b"**/*.keep"])
    assert patterns.directory(b"a", included=False) == (Verdict.WALK, False)
    assert patterns.directory(b"a/b", included=False) == (Verdict.WHOLE, True)
    assert not patterns.file(b"a/b", included=False)
    assert patterns.file(b"z/y/x.keep", included=False)
    assert not patterns.file(b"z/y/x.drop", included=False)
    alone = Patterns(include=[b"a/b/"])
    assert alone.directory(b"x", included=False)[0] is Verdict.SKIP
    assert alone.directory(b"x/a/b", included=False)[0] is Verdict.SKIP


def test_an_include_that_nothing_answers_to_is_named() -> None:
    patterns = Patterns(include=[b"gone/", b"a/", b"a/b/"])
    patterns.directory(b"a", included=False)
    assert patterns.unmatched() == [b"gone/"]


@pytest.mark.parametrize("pattern", [b"", b"/", b"a/../b", b"[abc", b"x\\", b"[z-a]", b"."])
def test_a_pattern_that_means_nothing_is_refused(pattern: bytes) -> None:
    with pytest.raises(ConfigError):
        Patterns(include=[pattern])
    with pytest.raises(ConfigError):
        Patterns(exclude=[pattern])
