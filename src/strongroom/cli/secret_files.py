"""Files that hold a secret: made with mode 0600, never over an existing one."""

from __future__ import annotations

import os

from strongroom import wiring
from strongroom.errors import AlreadyExists, StrongroomError


def create_secret_file(path: str, text: str) -> None:
    """Write a new file that only its owner may read, durable on return."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.unlink(path)
            raise
    except FileExistsError:
        raise AlreadyExists(f"{path} exists.", do="Name another file.") from None
    except OSError as fault:
        raise StrongroomError(
            f"{path} cannot be written: {fault.strerror}.",
            means="Nothing was changed in the repository.",
            do="Name another place, and run it again.",
        ) from None


def make_key_file(path: str) -> None:
    """Make a new key file."""
    create_secret_file(path, wiring.new_key_file())
