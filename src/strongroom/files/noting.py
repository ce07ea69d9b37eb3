"""What a restore could not do.

What is not there is named, each by itself. A fact that could not be set is told once for all
entries that it concerns, at the end, when it is known how many they are.
"""

from __future__ import annotations

from strongroom.progress import Progress
from strongroom.repository.ports import Problem


class Noted:
    """Collects problems. `one` stands for itself; `fact` is gathered by its reason."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._single: list[Problem] = []
        self._alike: dict[str, tuple[bytes, int]] = {}

    def one(self, path: bytes, why: str) -> None:
        """Note something that concerns this path alone."""
        self._single.append(Problem(path, why))
        self._progress.problem(path, why)

    def fact(self, path: bytes, why: str) -> None:
        """Note something that may concern many paths; the first of them is named."""
        first, count = self._alike.get(why, (path, 0))
        self._alike[why] = (first, count + 1)

    def conclude(self) -> tuple[Problem, ...]:
        """Tell of the facts; return everything noted: what stands alone, then each shared cause."""
        shared = [
            Problem(path, why if count == 1 else f"{why} (and so with {count - 1:,} more)")
            for why, (path, count) in self._alike.items()
        ]
        for problem in shared:
            self._progress.problem(problem.path, problem.reason)
        return (*self._single, *shared)
