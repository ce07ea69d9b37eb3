"""A cluster as it was, opened without being restored: its files come out of the repository as they are read."""
