"""Portable artefacts: files that a person without Strongroom opens with gzip, tar, openssl, age."""
