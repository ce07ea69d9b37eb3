"""The main job on embedded parts: a Stakazo-like database and vault, there and back.

`strongroom demo` runs the real command for every step, prints it as a person
would type it, and compares every row and every file at the end.
"""
