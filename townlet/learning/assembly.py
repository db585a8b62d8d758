"""Makes the parts of a run that its configuration asks for: worlds, network, operator settings, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .. import ops
from ..envs.adapter import VectorAdapter
from ..envs.images import SMALLEST_SIDE, default_convolutions, find_image
from ..envs.make import make_worlds
from ..envs.workers import WorkerAdapter
from ..settings.config import Config
from ..support import devices
from ..support.convolutions import parse_convolutions
from .networks import RecurrentConvQNetwork, RecurrentNetwork, RecurrentQNetwork, RecurrentSpatialQNetwork
from .population import VectorizedPopulation
from .replay import SequentialReplayBuffer


def open_worlds(
    config: Config,
    n: int,
    args: Mapping[str, Any],
    make: Callable[..., VectorAdapter] = make_worlds,
    *,
    workers: int = 0,
) -> VectorAdapter:
    """Open environments whose observations hold the extra inputs that ``config`` asks for.

    Args:
        config: the settings of the run.
        n: the number of environments.
        args: the world's arguments.
        make: opens a number of environments in the calling process.
        workers: the number of processes that step them. With 0, or with a single environment, this process does.

    Returns:
        The environments behind an adapter.

    Raises:
        ValueError: the world cannot be opened.
    """

    def here(some: int) -> VectorAdapter:
        return make(config.env, some, **args)

    worlds = WorkerAdapter(here, n, workers) if workers and n > 1 else here(n)
    worlds.feed_back(action=config.last_action, reward=config.last_reward)
    return worlds


def check_agents(config: Config, worlds: VectorAdapter) -> None:
    """Refuse numbers of environments that do not fill whole copies of a world with several agents.

    Raises:
        ValueError: a member's environments or episodes leave a copy incomplete; the message names the settings.
    """
    M = getattr(worlds.env, "agents_per_copy", 1)
    names = ("num_envs", "eval_episodes", "final_eval_episodes")
    wrong = [f"{name} is {getattr(config, name)}" for name in names if getattr(config, name) % M]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}; expected multiples of {M}, the agents of one {config.env}")


def build_network(config: Config, worlds: VectorAdapter) -> RecurrentNetwork:
    """The network that ``config`` names, with the sizes of the worlds' observations and actions.

    Raises:
        ValueError: ``config.network`` is conv, but the observation holds no image, or several.
    """
    head: dict[str, Any] = {"head_size": config.head_size, "dueling": config.dueling}
    if config.network == "spatial":
        return RecurrentSpatialQNetwork.from_town(worlds.env, **head)
    sizes = (worlds.obs_size, worlds.n_actions)
    layers: dict[str, Any] = {"encoder": config.encoder, "hidden_size": config.hidden_size, **head}
    if config.network == "mlp":
        return RecurrentQNetwork(*sizes, **layers)
    space, asked = worlds.env.single_observation_space, config.network == "conv"
    image = find_image(space, worlds.name, least=1 if asked else SMALLEST_SIDE)
    if image is not None:
        conv = parse_convolutions(config.conv) if config.conv else default_convolutions(image)
        return RecurrentConvQNetwork(*sizes, image, conv, **layers)
    if asked:
        raise ValueError(
            f"network is conv; expected an image (a Box of three axes) in what {worlds.name} shows: {space}"
        )
    return RecurrentQNetwork(*sizes, **layers)


def td_spec(config: Config, population: VectorizedPopulation) -> ops.TDSpec:
    """The operator's settings, with the discounts and the dtype that ``population`` was made with."""
    return ops.TDSpec(
        gamma=population.gamma,
        n_step=config.n_step,
        burn_in=config.burn_in,
        double_q=config.double_q,
        rescale_eps=config.rescale_eps,
        loss="huber" if config.loss == "huber" else "mse",
        huber_delta=config.huber_delta,
        eta=config.eta,
        compute_dtype=population.compute_dtype,
    )


def replay_sizes(config: Config, worlds: VectorAdapter, network: RecurrentNetwork, legal: bool) -> dict[str, Any]:
    """The arguments of `SequentialReplayBuffer` that decide its size.

    Args:
        config: the settings of the run.
        worlds: gives the sizes of observations and actions.
        network: gives the size of the recurrent state.
        legal: whether masks of legal actions are stored.
    """
    return {
        "members": config.members,
        "num_envs": config.num_envs,
        "capacity": config.capacity,
        "obs_size": worlds.obs_size,
        "n_actions": worlds.n_actions,
        "hidden_size": network.hidden_size,
        "seq_len": config.seq_len,
        "stride": config.window_stride,
        "store_legal": legal,
    }


def memory_statement(
    config: Config, replay_sizes: dict[str, Any], network: RecurrentNetwork, device: torch.device
) -> str:
    """The memory that is about to be allocated, in words.

    Args:
        config: the settings of the run.
        replay_sizes: what `replay_sizes` returned.
        network: gives the shapes of the weights.
        device: where the memory is.

    Raises:
        ValueError: the device does not have that much memory.
    """
    replay = SequentialReplayBuffer.measure(**replay_sizes)
    weights = 5 * 4 * config.members * sum(int(np.prod(shape)) for shape in network.shapes().values())
    machine = devices.total_memory(device)
    if replay.nbytes + weights > machine:
        raise ValueError(
            f"capacity is {config.capacity}, so replay and weights need {_bytes(replay.nbytes + weights)}; expected at "
            f"most the {_bytes(machine)} of {devices.device_name(device)} (lower capacity or members)"
        )
    streams = f"{config.members} x {config.num_envs} streams of {replay.ring:,} steps"
    return (
        f"memory: replay {_bytes(replay.nbytes)} ({streams}), weights with target, gradient and Adam {_bytes(weights)}"
    )


def _bytes(n: int) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
