"""Strongroom: PostgreSQL databases and file vaults in one encrypted repository, and proof."""

__version__ = "0.1.0"
