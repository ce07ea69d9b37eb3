"""A tree of files as Source and Sink. Names are bytes, opened by directory descriptors only."""
