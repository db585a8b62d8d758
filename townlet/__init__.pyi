"""The public names of Townlet, as type checkers see them."""

from ._build import __version__ as __version__
from ._build import build_config as build_config
from .envs import TownVectorEnv as TownVectorEnv
from .learning.learner import Learner as Learner
from .learning.networks import RecurrentConvQNetwork as RecurrentConvQNetwork
from .learning.networks import RecurrentQNetwork as RecurrentQNetwork
from .learning.networks import RecurrentSpatialQNetwork as RecurrentSpatialQNetwork
from .learning.population import VectorizedPopulation as VectorizedPopulation
from .learning.replay import SequentialReplayBuffer as SequentialReplayBuffer
from .settings.config import Config as Config
from .training.trainer import Trainer as Trainer

__all__ = [
    "Config",
    "Learner",
    "RecurrentConvQNetwork",
    "RecurrentQNetwork",
    "RecurrentSpatialQNetwork",
    "SequentialReplayBuffer",
    "TownVectorEnv",
    "Trainer",
    "VectorizedPopulation",
    "__version__",
    "build_config",
]
