"""A hint to the disk: it changes nothing, and is never an error."""

from __future__ import annotations

from pathlib import Path

from strongroom import kernel


def test_what_was_written_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        file.write(bytes(range(256)) * 8192)
        file.flush()
        kernel.start_writing(file.fileno(), 0, 2 << 20)
        kernel.start_writing(file.fileno(), 1 << 40, 4096)
    assert path.read_bytes() == bytes(range(256)) * 8192


def test_a_descriptor_that_is_none_is_no_error() -> None:
    kernel.start_writing(-1, 0, 4096)
