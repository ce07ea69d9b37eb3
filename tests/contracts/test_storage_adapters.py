"""Every storage against the one contract. A new adapter adds a class of a few lines here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from storage_contract import StorageContract, test_names_are_well_formed_or_refused  # noqa: F401

from servers import S3Server
from strongroom.storage.base import Capabilities, Storage
from strongroom.storage.faulty import FaultyStorage
from strongroom.storage.local import (
    LocalStorage,
    Place,
    _link,
    _rename_noreplace,
    _rename_under_lock,
)
from strongroom.storage.memory import MemoryStorage
from strongroom.storage.metered import MeteredStorage

_places = itertools.count()


class TestLocal(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "new" / "repository")


class TestLocalWithoutHardLinks(StorageContract):
    """The ways that file systems without hard links, or without renameat2 as well, are served."""

    @pytest.fixture(params=[_link, _rename_noreplace, _rename_under_lock])
    def storage(self, tmp_path: Path, request: pytest.FixtureRequest) -> Storage:
        way: Place = request.param
        storage = LocalStorage(tmp_path / "repository")
        storage._places = (way,)
        return storage


class TestMemory(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


class TestFaultyWithoutFaults(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return FaultyStorage(MemoryStorage(), page=7)


class TestMetered(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return MeteredStorage(MemoryStorage())


class TestMotoS3(StorageContract):
    racy = "moto checks If-None-Match before it stores and holds no lock: two racers can win"

    @pytest.fixture
    def storage(self, moto_s3: S3Server) -> Storage:
        return moto_s3.storage(f"contract/{next(_places)}")


class TestSeaweedS3(StorageContract):
    # It lists directory by directory: "a/x" before "a-1". The probe finds that, and it is fine.
    capabilities = Capabilities(put_if_absent=True, read_after_write=True, list_sorted=False)

    @pytest.fixture
    def storage(self, seaweed_s3: S3Server) -> Storage:
        return seaweed_s3.storage(f"contract/{next(_places)}")
