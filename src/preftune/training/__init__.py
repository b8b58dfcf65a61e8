"""Training: the loop and what it stands on. `train(run)` does a whole run."""

from preftune.training.loop import train

__all__ = ["train"]
