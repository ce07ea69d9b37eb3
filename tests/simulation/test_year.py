from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from year import DAY, Year

START = datetime(2027, 7, 1, 0, 30, tzinfo=UTC)


def test_a_year(tmp_path: Path) -> None:
    year = Year(tmp_path, START)
    import sys, time
    days = 367
    began = time.monotonic()
    year.until(START + days * DAY)
    print(len(year.ran), len(year.storage.objects), time.monotonic() - began)
    year.assert_kept()
