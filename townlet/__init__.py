"""Townlet: populations of recurrent Q-learning agents."""

import torch as _torch  # noqa: F401  first: brings the OpenMP runtime

__version__ = "0.1.0"
