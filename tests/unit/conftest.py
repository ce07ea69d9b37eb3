"""Properties have no deadline: a shared machine can stop for seconds, and that is no finding."""

from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")
