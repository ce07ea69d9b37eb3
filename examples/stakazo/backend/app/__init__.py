"""The part of the Stakazo platform that its backups are about: a database and a Memory Vault."""
