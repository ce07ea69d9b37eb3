"""Amounts of bytes, read and written: "5GiB", "500 MB", 1536 → "1.5 KiB"."""

from __future__ import annotations

import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kmgtp]?)(i?)b?\s*", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "5GiB" (binary), "5GB" (decimal) or "5000"; ValueError with a sentence if not one.

    A bare letter ("5G") is binary, as in restic, rclone and dd.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not an amount of bytes; write it like "5GiB" or "500MB"')
    number, letter, binary = found[1], found[2].lower(), found[3]
    if binary and not letter:
        raise ValueError(f'"{text}" is not an amount of bytes; write it like "5GiB" or "500MB"')
    decimal = letter and not binary and text.strip().lower().endswith("b")
    return int(float(number) * (1000 if decimal else 1024) ** _POWERS[letter])


def show_size(size: float) -> str:
    """`size` bytes for a person, binary units: "0 B", "1.5 KiB", "20 GiB"."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(amount) < 1024:
            break
        amount, unit = amount / 1024, larger
    if unit == "B":
        return f"{int(amount)} B"
    return f"{amount:.1f} {unit}" if abs(amount) < 100 else f"{amount:.0f} {unit}"


def show_seconds(seconds: float) -> str:
    """A length of time for a person: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min", "4 d 3 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
