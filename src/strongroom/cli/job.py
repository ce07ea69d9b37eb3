"""`python -m strongroom.cli.job PARENT WORDS…`: the command, which ends when PARENT does.

A scheduler that is killed must not leave a job behind that another host believes dead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the words as the command would, bound to the life of the parent."""
    parent, words = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)
    from strongroom.cli.main import main as run  # noqa: PLC0415 -- not before we are bound

    sys.argv[1:] = words
    run()


main()
