"""Print the demo as it runs, and end with its verdict."""

from __future__ import annotations

import dataclasses

from strongroom.cli.output import Output
from strongroom.demo import run as demos
from strongroom.errors import StrongroomError


def run(output: Output, *, small: bool) -> int:
    """Run the demo; exit status 9 when anything differs, after the report."""
    verdict = demos.run(scale=0.1 if small else 1.0, say=output.note)
    output.lines(demos.report(verdict))
    fault: StrongroomError | None = None
    try:
        demos.verify(verdict)
    except StrongroomError as different:
        fault = different
    return output.finish("demo", dataclasses.asdict(verdict), fault)
