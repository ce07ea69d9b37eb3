"""`python -m bench` can be started: nothing else imports its parts, and no other check reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_knows_its_parts() -> None:
    words = [sys.executable, "-m", "bench", "--help"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"physical" in done.stdout and b"open" in done.stdout
