"""Pure decisions: no clock, no randomness, no files; `now` is an argument."""
