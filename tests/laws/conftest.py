"""The small run that the laws are held on."""

from small_run import keys_of, run_of, world

__all__ = ["keys_of", "run_of", "world"]
