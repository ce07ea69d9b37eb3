"""Logical backups: pg_dump streams side by side from one snapshot, and their way back."""
