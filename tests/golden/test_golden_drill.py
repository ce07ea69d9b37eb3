"""Reports of drills as they were written once: they open, verify and read the same for ever, by the
program and by the page alone. None is ever written anew."""

from __future__ import annotations

import hashlib
import json
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rooms import QUIET, seams
from strongroom.errors import Damaged
from strongroom.keys.keyfile import KeyFileHolder, parse_keyfile
from strongroom.operations.check import check
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.audit import AuditLog
from strongroom.repository.reports import Reports
from strongroom.repository.repository import Repository
from strongroom.rules.drill import Drilled
from strongroom.rules.drill_report import html, markdown
from strongroom.storage.local import LocalStorage

HERE = Path(__file__).parent / "drill"
ALL = sorted(path.name for path in HERE.iterdir())


@pytest.fixture(params=ALL)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Repository]:
    """What is kept, the store unpacked, and opened."""
    kept = HERE / request.param
    with tarfile.open(kept / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    holder = KeyFileHolder(parse_keyfile((kept / "secret").read_bytes()))
    storage = LocalStorage(tmp_path / "store")
    opened = open_repository(storage, [holder], seams=seams("today"), settings=QUIET)
    return kept, tmp_path / "store", opened


def test_the_program_reads_it(golden: tuple[Path, Path, Repository]) -> None:
    kept, _, repository = golden
    ((_, leaf),) = AuditLog(repository).leaves()
    drill = Drilled.from_run(leaf)
    assert (drill.verdict, drill.verifies, len(drill.steps)) == ("red", False, 6)
    reports = Reports(repository)
    document = reports.get(drill.run)
    assert document == (kept / "report.json").read_bytes()
    assert Reports.digest(document) == drill.report
    body = reports.open(document)
    assert markdown(body, drill.report) == (kept / "report.md").read_text("utf-8")
    assert html(body, drill.report) == (kept / "report.html").read_text("utf-8")


def test_by_the_page_alone(golden: tuple[Path, Path, Repository]) -> None:
    """Chapters 9, 10 and 17, with primitives."""
    kept, store, repository = golden
    keys = repository.keys.current
    (path,) = (store / "audit/reports").iterdir()
    name = f"audit/reports/{path.name}"
    data = path.read_bytes()
    assert data[:8] == b"SRM1audr"
    key = blake3(b"strongroom catalogue 1 audr", key=keys.catalogue_key).digest()
    padded = AESGCM(key).decrypt(data[8:20], data[20:], keys.repository + b"audr" + name.encode())
    document = padded[4 : 4 + int.from_bytes(padded[:4], "little")]
    assert document == (kept / "report.json").read_bytes()
    signed = json.loads(document)
    text = json.dumps(signed["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed["signer"])).verify(
        bytes.fromhex(signed["signature"]), b"strongroom drill report 1" + text.encode()
    )
    (leaf,) = (store / "audit/leaves").rglob("[0-9]" * 12)
    key = blake3(b"strongroom catalogue 1 audl", key=keys.catalogue_key).digest()
    name, data = str(leaf.relative_to(store)), leaf.read_bytes()
    padded = AESGCM(key).decrypt(data[8:20], data[20:], keys.repository + b"audl" + name.encode())
    entry = json.loads(padded[4 : 4 + int.from_bytes(padded[:4], "little")])
    assert entry["body"]["detail"]["report"] == hashlib.sha256(document).hexdigest()


def test_a_report_that_was_changed_is_found(golden: tuple[Path, Path, Repository]) -> None:
    kept, store, repository = golden
    document = (kept / "report.json").read_bytes()
    for wrong in (document.replace(b'"red"', b'"green"'), b"{}", b"[]", document[:-1]):
        with pytest.raises(Damaged, match="no report that a writer"):
            Reports(repository).open(wrong)
    assert check(repository, level=2, progress=Silent()).findings == []
    (path,) = (store / "audit/reports").iterdir()
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    (finding,) = check(repository, level=2, progress=Silent()).findings
    assert finding.object == f"audit/reports/{path.name}"


def test_nothing_of_a_database_becomes_markup(golden: tuple[Path, Path, Repository]) -> None:
    kept, _, _ = golden
    tags: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onload"}

    page = (kept / "report.html").read_text("utf-8")
    Tags().feed(page)
    assert "script" not in tags
    assert "b" not in tags
    assert "&lt;script&gt;" in page
    lines = (kept / "report.md").read_text("utf-8").splitlines()
    table = lines[lines.index("## Steps") + 2 :]
    for line in table[: table.index("")]:
        cells = line.replace("\\|", "").count("|")
        assert cells == 5, line
