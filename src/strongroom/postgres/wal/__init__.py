"""The write-ahead log of a server: read, taken into a repository, and given back."""
