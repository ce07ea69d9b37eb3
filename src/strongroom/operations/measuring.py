"""The figures that Prometheus is told, computed from the repository and the journal."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import strongroom
from strongroom.config.model import Configuration
from strongroom.observe.journal import Journal
from strongroom.observe.metrics import Figures, LastBackup
from strongroom.operations.standing import replace_private, survey
from strongroom.repository.repository import Repository
from strongroom.rules.anomalies import conditions

SIZE = "size.json"


def figures(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    folder: str | None = None,
    fresh: bool = True,
) -> Figures:
    """Everything that is told, as it is now. `folder`: as for `survey`.

    What rests is added up object by object, which is many requests to a store: without `fresh`, as
    when nothing has run, it is what it was when somebody did.
    """
    found = survey(repository, journal, configuration, now=now, folder=folder)
    return Figures(
        now,
        strongroom.__version__,
        found.standings,
        found.state,
        conditions(found.state, now=now),
        {
            name: LastBackup(one.size, one.new_size, one.stored)
            for name, one in found.newest.items()
        },
        _size(repository, folder, fresh=fresh),
        _deliveries(journal),
    )


def _size(repository: Repository, folder: str | None, *, fresh: bool) -> int:
    path = None if folder is None else os.path.join(folder, SIZE)
    if not fresh and path is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path) as file:
            body = json.load(file)
            if body["repository"] == repository.identity.id.hex():
                return int(body["size"])
    size = sum(entry.size for entry in repository.storage.list(""))
    if path is not None:
        replace_private(path, {"repository": repository.identity.id.hex(), "size": size})
    return size


def _deliveries(journal: Journal) -> Counter[tuple[str, str]]:
    """What became of every message by every channel, as the leaves of alerts tell."""
    found: Counter[tuple[str, str]] = Counter()
    for run in journal.runs(type="alert", refresh=False):
        channels = run.detail.get("channels")
        if isinstance(channels, Mapping):
            found.update(
                (str(name), "failed" if fault else "taken") for name, fault in channels.items()
            )
    return found


__all__ = ["figures"]
