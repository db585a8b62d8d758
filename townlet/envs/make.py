"""Opens worlds by their ids: the Town's, any Gymnasium id, ``module:Id``, and ``pettingzoo:module``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from ..support.ids import HOMES, PETTINGZOO, TOWN_ID
from .adapter import VectorAdapter
from .faults import raised
from .minigrid import SymbolicObservation
from .pettingzoo import ParallelVectorEnv
from .town.env import TownVectorEnv

_OWN = " A world of your own is MODULE:ID, where importing MODULE registers ID."


def make_worlds(env_id: str, num_envs: int, **env_args: Any) -> VectorAdapter:
    """Open ``num_envs`` copies of a world.

    The Town's id gives the C++ ``TownVectorEnv``. Every other Gymnasium id runs in this process, one environment after
    the other, unless it is registered as a vector environment only. Ids that begin as in `support.ids.HOMES` import the
    package that registers them; ``module:Id`` imports ``module`` first, from the current folder too.
    ``pettingzoo:module`` calls the ``parallel_env`` of that module. Then every agent is an environment, and
    ``num_envs`` = 1 gives one copy with all of its agents.

    Args:
        env_id: the world's id.
        num_envs: the number of environments.
        env_args: the world's own arguments.

    Returns:
        The environments behind an adapter.

    Raises:
        ValueError: the id is unknown, its package is not installed, or the world does not take ``env_args``.
    """
    if env_id == TOWN_ID:
        try:
            return VectorAdapter(TownVectorEnv(num_envs, **env_args), env_id)
        except TypeError as error:
            raise ValueError(f"{env_id}: {error}") from None
    if env_id.startswith(PETTINGZOO):
        return VectorAdapter(_open_pettingzoo(env_id, num_envs, env_args), env_id)
    home, _, plain_id = env_id.rpartition(":")
    home = home or next((package for prefix, package in HOMES.items() if env_id.startswith(prefix)), "")
    if home:
        _import(home, env_id)
    spec = gymnasium.registry.get(plain_id)
    options: dict[str, Any] = {"vectorization_mode": "vector_entry_point"}
    if spec is None or spec.entry_point is not None:
        modes = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        options = {"vectorization_mode": "sync", "vector_kwargs": modes, "disable_env_checker": True}
        options["wrappers"] = (SymbolicObservation,) if home == "minigrid" else ()
    try:
        env = gymnasium.make_vec(plain_id, num_envs=num_envs, **options, **env_args)
    except Exception as error:
        reason = str(error) if isinstance(error, (gymnasium.error.Error, TypeError)) else raised(error)
        hint = ""
        if isinstance(error, gymnasium.error.UnregisteredEnv):
            hint = _nearest(plain_id) + (_OWN if not home else "")
        raise ValueError(f"{env_id}: cannot be made with {env_args or 'no arguments'}: {reason}{hint}") from error
    return VectorAdapter(env, env_id)


def _open_pettingzoo(env_id: str, num_envs: int, env_args: dict[str, Any]) -> ParallelVectorEnv:
    name = env_id.removeprefix(PETTINGZOO)
    make = getattr(_import(name, env_id), "parallel_env", None)
    if make is None:
        raise ValueError(
            f"{env_id}: {name} has no parallel_env; expected a module of a PettingZoo parallel environment"
        )

    def copy() -> Any:
        try:
            return make(**env_args)
        except Exception as error:
            reason = str(error) if isinstance(error, TypeError) else raised(error)
            raise ValueError(f"{env_id}: cannot be made with {env_args or 'no arguments'}: {reason}") from error

    return ParallelVectorEnv(copy, num_envs, env_id)


def _import(module: str, env_id: str) -> ModuleType:
    """Import the module that registers ``env_id``. It may lie in the current folder, as with ``python -m``."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        hint = f"try: pip install {package}"
        if package == module.partition(".")[0] and module not in HOMES.values():
            hint += f", or start in the folder that holds {package}.py, and name it without .py"
        raise ValueError(f"{env_id}: needs the package {package!r} ({error}); {hint}") from None
    except Exception as error:
        raise ValueError(f"{env_id}: {module} cannot be imported: {raised(error)}") from error


def _nearest(env_id: str) -> str:
    near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=3, cutoff=0.6)
    return f" Near: {', '.join(near)}." if near else ""
