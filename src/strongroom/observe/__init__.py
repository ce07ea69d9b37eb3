"""What is told of runs, and to whom: the journal, notifications, metrics."""
