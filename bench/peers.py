"""The programs measured: ours and the peers', each as a whole process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from bench.measure import Run, fresh, run

OURS = os.path.join(os.path.dirname(sys.executable), "strongroom")


class Strongroom:
    """Our command, with a configuration and a home of its own."""

    name = "strongroom"

    def __init__(self, work: str, sources: str, program: Sequence[str] = (OURS,)) -> None:
        self.work = work
        self.repository = f"{work}/strongroom"
        self._program = program
        self._env = {
            "STRONGROOM_PASSPHRASE": "bench",
            "STRONGROOM_CONFIG": f"{work}/strongroom.toml",
            "XDG_CACHE_HOME": f"{work}/cache",
        }
        os.makedirs(work, exist_ok=True)
        with open(f"{work}/strongroom.toml", "w") as file:
            file.write(
                f'[repository]\nurl = "{self.repository}"\n'
                f'passphrase = "env:STRONGROOM_PASSPHRASE"\n\n{sources}'
            )

    def init(self) -> Run:
        """A new repository and an empty change cache."""
        fresh(self.repository)
        fresh(f"{self.work}/cache")
        return self._run("init")

    def backup(self, source: str) -> Run:
        return self._run("backup", source)

    def restore(self, source: str, target: str, *more: str) -> Run:
        return self._run("restore", source, "--to", target, *more)

    def _run(self, *words: str) -> Run:
        return run([*self._program, "--quiet", *words], env=self._env)


class Restic:
    """restic from PATH, with its defaults."""

    name = "restic"

    def __init__(self, work: str) -> None:
        self.repository = f"{work}/restic"
        self._env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": f"{work}/restic-cache"}

    @staticmethod
    def present() -> bool:
        return shutil.which("restic") is not None

    def init(self) -> Run:
        fresh(self.repository)
        return self._run("init")

    def backup(self, path: str) -> Run:
        return self._run("backup", path)

    def restore(self, target: str) -> Run:
        return self._run("restore", "latest", "--target", target)

    def _run(self, *words: str) -> Run:
        return run(["restic", "--repo", self.repository, "--quiet", *words], env=self._env)


class Borg:
    """borg from PATH, encrypted, zstd 1."""

    name = "borg"

    def __init__(self, work: str) -> None:
        self.repository = f"{work}/borg"
        self._env = {"BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": f"{work}/borg-base"}
        self._count = 0

    @staticmethod
    def present() -> bool:
        return shutil.which("borg") is not None

    def init(self) -> Run:
        fresh(self.repository)
        return run(["borg", "init", "-e", "repokey-blake2", self.repository], env=self._env)

    def backup(self, path: str) -> Run:
        self._count += 1
        archive = f"{self.repository}::{self._count}"
        return run(["borg", "create", "-C", "zstd,1", archive, path], env=self._env)
