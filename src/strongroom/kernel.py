"""The few loops that Python is too slow for, compiled where a compiler was present at install.

`strongroom._kernel` and the Python twins give the same results; the twins are the specification.
"""

from __future__ import annotations
