"""What happened, as this machine knows it: the journal of runs and what waits to be told."""
