"""Side-by-side measurements: both sides in one run, whole processes, ratios of medians."""
