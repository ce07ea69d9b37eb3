"""The Memory Vault: five folders of files, and an index of them in the database."""
