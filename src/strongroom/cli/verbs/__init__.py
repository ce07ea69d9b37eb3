"""One module a noun or verb, imported when it is used."""
