"""What every test may ask for. Rule: only plugins are named here; fixtures live in them."""

pytest_plugins = ["servers"]
