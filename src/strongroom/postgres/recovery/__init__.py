"""A cluster brought back: its files, and what it must be told to recover."""
