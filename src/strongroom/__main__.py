"""`python -m strongroom` is the command."""

from strongroom.cli.main import main

main()
