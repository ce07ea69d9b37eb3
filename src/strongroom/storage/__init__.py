"""Where objects rest. `base` is the promise; each other file is one adapter or one wrapper."""
