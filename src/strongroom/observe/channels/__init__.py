"""Ways to tell somebody: each takes a message, or raises NotTold."""
