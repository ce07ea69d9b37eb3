"""TOML and environment become frozen values here; an unknown key is an error."""
