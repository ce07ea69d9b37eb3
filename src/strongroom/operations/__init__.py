"""One verb a file, in straight lines: two ends and the engine, counts and no bytes."""
