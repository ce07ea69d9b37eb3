"""Verify a repository; remember which packs were read when, so that budgets go round."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping

from strongroom.progress import Progress
from strongroom.repository.check import Budget, Checker, Report
from strongroom.repository.repository import Repository


def check(
    repository: Repository,
    *,
    level: int,
    progress: Progress,
    size: int | None = None,
    seconds: float | None = None,
    state: str | None = None,
) -> Report:
    """Check up to `level` 0 to 3, reading at most `size` bytes or for `seconds`.

    `state` is a file that remembers when each pack was last verified; a lost one costs the order,
    and the round has to begin again before what is read by budget proves a backup whole.
    """
    steady = repository.seams.steady
    end = None if seconds is None else steady() + seconds
    budget = Budget(size, lambda: end is not None and steady() >= end)
    verified = _load(state)
    report = Checker(repository, progress=progress).run(
        level, budget=budget, last_verified=verified
    )
    if state is not None and (report.verified or report.spoiled):
        now = repository.seams.now().timestamp()
        known = {**verified, **dict.fromkeys(report.verified, now)}
        _save(state, {name: at for name, at in known.items() if name not in report.spoiled})
    return report


def _load(state: str | None) -> Mapping[str, float]:
    if state is None:
        return {}
    try:
        with open(state, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {str(name): float(moment) for name, moment in document.items()}


def _save(state: str, verified: Mapping[str, float]) -> None:
    # A cache directory that cannot be written is no reason to fail a check that succeeded.
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(state), mode=0o700, exist_ok=True)
        with open(state + ".new", "w", encoding="utf-8") as file:
            json.dump(verified, file)
        os.replace(state + ".new", state)


__all__ = ["Report", "check"]
