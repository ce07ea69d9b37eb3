"""Print the demo as it runs, and end with its verdict."""

from __future__ import annotations

import dataclasses
import sys

from strongroom.cli.output import Output
from strongroom.demo import run as demos


def run(output: Output, *, small: bool) -> int:
    """Run the demo; Damaged (exit 9) when anything differs."""
    verdict = demos.run(scale=0.1 if small else 1.0, say=_say)
    if output.json:
        output.document("demo", dataclasses.asdict(verdict))
    else:
        print("\n".join(demos.report(verdict)))
    demos.verify(verdict)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
