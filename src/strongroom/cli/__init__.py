"""Verbs and their rendering. Only this room prints, asks and exits."""
