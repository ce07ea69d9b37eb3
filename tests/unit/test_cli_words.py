"""Words of the command line: names on a terminal, places, flags in front, errors, progress."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.cli.app import LONG, VERBS
from strongroom.cli.codes import error_classes, load_pages
from strongroom.cli.flags import verb_first
from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.cli.output import Output, error_lines
from strongroom.cli.places import Place, clean_path, parse_place
from strongroom.cli.progress import Pace, Sums, Tally, describe, progress_body
from strongroom.cli.reference import cli_page, pages
from strongroom.cli.verbs.backup import read_labels
from strongroom.cli.verbs.check import read_budget
from strongroom.errors import Damaged, NotFound, UsageError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.json", "plain.json"),
        ("ñandú 文件".encode(), "ñandú 文件"),
        (b"two\nlines", "two\\nlines"),
        (b"\x1b[31mred", "\\e[31mred"),
        (b"\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        ("\u2028".encode(), "\\u2028"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\\nb", "a\\\\nb"),
        (b"\x00\x7f", "\\x00\\x7f"),
        ("\U000e0041".encode(), "\\U000e0041"),
    ],
)
def test_names_cannot_act_on_a_terminal(name: bytes, shown: str) -> None:
    assert show_name(name) == shown
    assert show_name(name).isprintable()


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_names_never_look_alike(one: bytes, other: bytes) -> None:
    assert (show_name(one) == show_name(other)) == (one == other)


@given(st.binary(max_size=60))
def test_every_name_comes_back_out_of_json(name: bytes) -> None:
    fields = json.loads(json.dumps(path_fields(name)))
    if "path_b64" in fields:
        assert base64.b64decode(fields["path_b64"]) == name
    else:
        assert fields["path"].encode() == name


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("vault", Place("vault", "", b"")),
        ("vault:", Place("vault", "", b"")),
        ("vault:a/b", Place("vault", "", b"a/b")),
        ("vault:/a//./b/", Place("vault", "", b"a/b")),
        ("vault:a:b@c", Place("vault", "", b"a:b@c")),
        ("vault@latest:a", Place("vault", "latest", b"a")),
        ("vault@3fa9", Place("vault", "3fa9", b"")),
        ("vault@02:13:a", Place("vault", "02:13", b"a")),
        ("vault@02:13:05:a", Place("vault", "02:13:05", b"a")),
        ("vault@02:13:05", Place("vault", "02:13:05", b"")),
        ("vault@02:13:0/a", Place("vault", "02:13", b"0/a")),
        (
            "vault@2026-11-23T02:13:05+01:00:a:b",
            Place("vault", "2026-11-23T02:13:05+01:00", b"a:b"),
        ),
        ("vault@2026-11-23T02:13:05Z:a", Place("vault", "2026-11-23T02:13:05Z", b"a")),
        ("vault@2026-11-23 02:13Z:a", Place("vault", "2026-11-23 02:13Z", b"a")),
        ("vault@20 minutes ago:a", Place("vault", "20 minutes ago", b"a")),
        ("vault:\udcff", Place("vault", "", b"\xff")),
        ("vault:-d", Place("vault", "", b"-d")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text", ["", ":a", "@latest:a", "vault@:a", "vault@", "a b:c", "vault/x", "vault:../x", "../x"]
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


def test_paths_do_not_lead_out() -> None:
    with pytest.raises(UsageError, match="leads out"):
        clean_path("a/../../b")


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["--json", "list"], ["list", "--json"]),
        (["--repository", "/r", "list", "x"], ["list", "x", "--repository", "/r"]),
        (["--repository=/r", "-vv", "list"], ["list", "--repository=/r", "-vv"]),
        (["-r", "/r", "get", "--", "-x"], ["get", "-r", "/r", "--", "-x"]),
        (["list", "--json"], ["list", "--json"]),
        (["--help"], ["--help"]),
        (["--json"], ["--json"]),
        (["--repository"], ["--repository"]),
        ([], []),
    ],
)
def test_flags_in_front_of_the_verb(given: list[str], ordered: list[str]) -> None:
    assert verb_first(given) == ordered


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("10m", (600.0, None)),
        ("10M", (600.0, None)),
        ("2h", (7200.0, None)),
        ("90s", (90.0, None)),
        ("5GiB", (None, 5 << 30)),
        ("500MB", (None, 500_000_000)),
        ("1T", (None, 1 << 40)),
    ],
)
def test_budgets(text: str, budget: tuple[float | None, int | None]) -> None:
    assert read_budget(text) == budget


@pytest.mark.parametrize("text", ["", "soon", "-5m", "10x", "m"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        read_budget(text)


def test_labels() -> None:
    assert read_labels(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for text in ("a", "=b", "a=\x1b[2J", "a=" + "b" * 256):
        with pytest.raises(UsageError, match="no label"):
            read_labels([text])


# -- errors -----------------------------------------------------------------------------------


def test_every_error_has_its_page() -> None:
    pages = {page.code: page for page in load_pages()}
    for kind in error_classes():
        page = pages[kind.code]
        assert page.exit == kind.exit_status
        assert len(page.text) > 80, f"explain.toml says nothing of {kind.code}"
    assert len(pages) == len(error_classes()), "two errors share a code"


def test_an_error_is_four_lines_whatever_it_says() -> None:
    fault = Damaged("two\nlines \x1b[2J of\r damage", means="a\n\nb", do="`x`\n")
    lines = error_lines(fault)
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert lines[3].strip() == "damaged · docs/reference/errors.md#damaged"
    assert show_text("a \u202e b") == "a \\u202e b"


def output(**options: Any) -> tuple[Output, io.StringIO, io.StringIO]:
    streams = io.StringIO(), io.StringIO()
    return Output(stdout=streams[0], stderr=streams[1], **options), *streams


def test_a_reading_verb_fails_with_a_document() -> None:
    out, stdout, stderr = output(json=True)
    out.error(NotFound("Nothing there."))
    body = json.loads(stdout.getvalue())
    assert (body["version"], body["type"], body["code"], body["exit"]) == (
        1,
        "error",
        "not-found",
        5,
    )
    assert {"what", "means", "do", "document"} <= set(body)
    assert len(stderr.getvalue().splitlines()) == 4


def test_a_long_verb_fails_with_a_result_line() -> None:
    out, stdout, _ = output(json=True)
    out.error(NotFound("Nothing there."), long=True, verb="backup")
    (line,) = stdout.getvalue().splitlines()
    body = json.loads(line)
    assert (body["type"], body["exit"], body["error"]["code"]) == ("result", 5, "not-found")


def test_a_streamed_document_stays_whole_when_it_breaks_off() -> None:
    def items() -> Any:
        yield {"path": "a"}
        raise Damaged("A page is damaged.")

    for source, status in ((iter([{"path": "a"}]), 0), (items(), 9), (iter([]), 0)):
        out, stdout, stderr = output(json=True)
        assert out.stream("entries", {"snapshot": {}}, "entries", source) == status
        body = json.loads(stdout.getvalue())
        assert body["version"] == 1
        assert ("error" in body) == bool(status)
        assert bool(stderr.getvalue()) == bool(status)


def test_problems_are_many_and_the_screen_is_small() -> None:
    out, _, stderr = output()
    for number in range(500):
        out.problem(b"file\x1b%d" % number, "Permission denied")
    lines = stderr.getvalue().splitlines()
    assert len(lines) == 21
    assert "-v" in lines[-1]
    assert "\x1b" not in stderr.getvalue()


def test_quiet_silences_good_news_only() -> None:
    out, stdout, stderr = output(quiet=True)
    out.note("hello")
    out.line("result")
    out.problem(b"x", "gone")
    assert stdout.getvalue() == "result\n"
    assert stderr.getvalue() == "skipped: x: gone\n"


def test_a_reader_that_goes_away_does_not_stop_a_backup() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    out = Output(json=True, stdout=Closed(), stderr=io.StringIO())
    out.event("progress", {})
    out.event("result", {})


# -- progress ---------------------------------------------------------------------------------


def test_sums_rate_and_time_left() -> None:
    out, _, _ = output()
    tally = Tally(out)
    tally.phase("reading files")
    tally.plan(size=1000, files=10)
    tally.advance(size=250, files=2, stored=100)
    tally.advance(size=250, files=3)
    pace = Pace(100.0)
    pace.see(110.0, 500)
    sums = tally.sums()
    assert sums == Sums("reading files", 500, 5, 100, 1000, 10, 0)
    assert pace.rate() == 50.0
    body = progress_body(sums, pace, 110.0)
    assert (body["rate"], body["seconds_left"], body["seconds"]) == (50, 10.0, 10.0)
    text = describe(sums, pace, 110.0)
    assert "500 B of 1000 B" in text
    assert "50 B/s" in text
    assert "10 s left" in text


def test_time_left_is_not_made_up() -> None:
    pace = Pace(0.0)
    assert progress_body(Sums(), pace, 1.0)["seconds_left"] is None
    pace.see(1.0, 0)
    assert pace.seconds_left(Sums(size_planned=10)) is None
    assert "left" not in describe(Sums(size=5), pace, 1.0)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.see(float(second), 1000 * min(second, 50))
    assert pace.rate() == 0.0


# -- docs -------------------------------------------------------------------------------------


def test_long_verbs_are_verbs() -> None:
    assert {tuple(verb.split()) for verb in LONG} <= set(VERBS)


def test_reference_pages_are_what_the_code_says() -> None:
    folder = Path(__file__).parents[2] / "docs/reference"
    for name, text in pages().items():
        assert (folder / name).read_text("utf-8") == text, (
            f"{name} is not what the code says: python -m strongroom.cli.reference"
        )


def test_every_verb_and_flag_is_documented() -> None:
    page = cli_page()
    sections = re.split(r"^#+ ", page, flags=re.MULTILINE)
    for words in VERBS:
        title = "strongroom " + " ".join(words)
        (section,) = [part for part in sections if part.splitlines()[0] == title]
        for flag in re.findall(r"^\* `(--[^`]*|[A-Z]+)`:(.*)$", section, flags=re.MULTILINE):
            assert flag[1].strip(), f"{title} {flag[0]} is not described"
