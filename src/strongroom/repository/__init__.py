"""The engine: the one write path, the one read path, and what keeps them honest."""
