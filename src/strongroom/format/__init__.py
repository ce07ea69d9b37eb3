"""PURE. What bytes mean at rest. No clock, randomness, files, sockets, threads or logging here."""
