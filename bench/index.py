"""Load an index of so many chunks, as `Repository.begin` does, and look something up.

python -m bench.index 10000000
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np

from strongroom.format.segment import FRAME_ROW, Segment, SessionRow
from strongroom.repository.index import Index

PER_SEGMENT, PER_FRAME = 65_536, 64


def segments(chunks: int) -> Iterator[Segment]:
    """Segments as they are decoded from storage, one after the other."""
    for number in range(-(-chunks // PER_SEGMENT)):
        frames = np.zeros(PER_SEGMENT // PER_FRAME, FRAME_ROW)
        frames["sequence"] = np.arange(len(frames)) + number * len(frames)
        frames["chunks"], frames["length"] = PER_FRAME, 1000
        frames["offset"] = np.arange(len(frames)) * 1000
        yield Segment(
            [SessionRow(b"s" * 16, 1, bytes(1168))],
            [(False, os.urandom(32))],
            frames,
            os.urandom(32 * PER_SEGMENT),
            np.full(PER_SEGMENT, 16_384, np.uint32),
        )


if __name__ == "__main__":
    index = Index(segments(int(sys.argv[1])))
    assert index.find(os.urandom(3200)).max() == -1
