"""A whole cluster, byte for byte: its data directory while the server runs."""
