"""The few loops that Python is too slow for, compiled where a compiler was present at install.

`strongroom._kernel` and the Python twins in this file give the same results; the twins are the
specification. `COMPILED` says which are in use; STRONGROOM_NO_KERNEL=1 in the environment forces
the twins. Nothing here decides anything: descriptors and names come in, bytes and error numbers
go out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

_compiled: Any = None
if not os.environ.get("STRONGROOM_NO_KERNEL"):
    try:
        from strongroom import _kernel as _compiled  # type: ignore[attr-defined, no-redef]
    except ImportError:  # built without a compiler: the twins give the same results, slower
        _compiled = None

COMPILED: bool = _compiled is not None

WINDOW = 32


def gear() -> NDArray[Any]:
    """Return the 256 u32 constants: first 4 bytes, LE, of BLAKE3(b"strongroom gear 1" ‖ byte)."""
    import numpy as np
    from blake3 import blake3

    digests = (blake3(b"strongroom gear 1" + bytes([byte])).digest()[:4] for byte in range(256))
    return np.frombuffer(b"".join(digests), dtype="<u4").astype(np.uint32)


def candidates(data: Buffer, mask: int) -> bytes:
    """Propose cuts: the u32 little-endian offsets, ascending, where the rolling hash fits `mask`.

    h(i) = sum over j in 0..31 of gear[data[i-j]] << j, modulo 2**32; offset i+1 is proposed when
    i >= 31 and h(i) & mask == 0. A proposal depends on the 32 bytes before it and on nothing
    else, so a stream may be cut anywhere if each part is given with the 31 bytes before it.
    The hash is public; it only proposes. Releases the GIL. ValueError above 4 GiB.
    """
    if _compiled is not None:
        offsets: bytes = _compiled.candidates(data, mask)
        return offsets
    return candidates_twin(data, mask)


_TWIN_RUN = 1 << 20  # the doubling makes several u32 arrays of what it is given


def candidates_twin(data: Buffer, mask: int) -> bytes:
    """Specify `candidates`, in numpy: the window doubles five times instead of rolling."""
    import numpy as np

    if len(data) > 0xFFFFFFFF or not 0 <= mask <= 0xFFFFFFFF:
        raise ValueError("data and mask are limited to 32 bits")
    table = gear()
    raw = np.frombuffer(data, dtype=np.uint8)
    found = []
    for start in range(0, len(raw) - WINDOW + 1, _TWIN_RUN):
        hashes = table[raw[start : start + _TWIN_RUN + WINDOW - 1]]
        for width in (1, 2, 4, 8, 16):
            hashes = hashes[width:] + (hashes[:-width] << np.uint32(width))
        hits = np.flatnonzero((hashes & np.uint32(mask)) == 0)
        found.append((hits + (start + WINDOW)).astype("<u4"))
    return b"".join(part.tobytes() for part in found)
