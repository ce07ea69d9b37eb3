"""Files as Source and Sink, over the double and over the engine."""
