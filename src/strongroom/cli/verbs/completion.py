"""completion bash|zsh|fish."""

from __future__ import annotations

from typing import Literal

from strongroom.cli.flags import Everywhere

_DEFAULT = Everywhere()


def completion(
    shell: Literal["bash", "zsh", "fish"], /, *, everywhere: Everywhere = _DEFAULT
) -> int:
    """Print the completion script of a shell.

    For bash: `strongroom completion bash > ~/.local/share/bash-completion/completions/strongroom`.

    Parameters
    ----------
    shell
        bash, zsh or fish.
    """
    del everywhere  # a script is a script
    from strongroom.cli.app import build  # noqa: PLC0415 -- app imports this module's name only

    print(build().generate_completion(prog_name="strongroom", shell=shell))
    return 0
