"""A cluster as it was, opened where it rests: its files leave the repository as they are read."""
