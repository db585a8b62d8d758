"""One update on fake CUDA tensors, which have shapes and no numbers: whoever asks one for a number gets an error.

python tests/helpers/fake_cuda.py LIBRARY KERNELS CONTROL ... (a process of its own: the library has to be there before
torch).
With KERNELS "compiled" the operators' fake kernels run, with "twins" the twins. A CONTROL spoils the update on purpose;
"none" does not. Prints for each the kind of the error, or "no wait".
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import fake_gpu

if __name__ == "__main__":  # before torch is imported
    fake_gpu.load(sys.argv[1])

import numpy as np
import torch
from learners import make
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from townlet import _native, ops
from townlet.evaluate import GreedyActor
from townlet.learning.learner import Learner
from townlet.ops import reference
from townlet.support import devices

CUDA = torch.device("cuda", 0)
ON_THE_HOST = {"_count", "_closed", "_keys"}  # of the replay buffer and of the population


class NoDownload(TorchDispatchMode):
    """Fake tensors copy to the CPU without a word; a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ran.add(str(func))
        sources = {v.device.type for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
        if "cuda" in sources and any(isinstance(v, Tensor) and v.device.type == "cpu" for v in tree_leaves(out)):
            raise RuntimeError(f"{func} copies from the GPU")
        return out


def moved(value: Any) -> Any:
    """The same structure with fake CUDA tensors in place of tensors."""
    if isinstance(value, Tensor):
        fake = torch.empty(value.shape, dtype=value.dtype, device=CUDA).requires_grad_(value.requires_grad)
        fake.grad = None if value.grad is None else moved(value.grad)
        return fake
    if isinstance(value, dict):
        return {k: moved(v) for k, v in value.items()}
    if isinstance(value, tuple):
        parts = [moved(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [moved(v) for v in value] if isinstance(value, list) else value


def fake(learner: Learner) -> None:
    """Moves a learner, its population and its buffer."""
    for part in (learner, learner.population, learner.replay):
        for name, value in vars(part).items():
            if name not in ON_THE_HOST:
                setattr(part, name, moved(value))
    learner.population.device = learner.replay.device = CUDA
    draw = learner.replay.draw

    def on_the_host(batch_size: int) -> Tensor:
        with unset_fake_temporarily():  # real numbers, from tables of the CPU
            return draw(batch_size)

    learner.replay.draw = on_the_host  # type: ignore[method-assign]
    learner.replay._loops = reference
    learner.td_unroll = partial(ops.td_unroll, grads=learner.population.recurrent_grads)
    object.__setattr__(learner.spec, "gamma", learner.population.gamma)
    learner.population.packed_target = learner.population._packed()  # of another size there


def spoil(learner: Learner, control: str) -> None:
    """Something that a device would have to be waited for."""
    population = learner.population
    finite = population.finite

    def asking(what: str, value: Tensor, so_far: Tensor | None = None) -> Tensor | None:
        if control == "item":
            value.sum().item()
        if control == "bool" and value.isfinite().all():
            return so_far
        if control == "download":
            value.cpu()
        if control == "mask":
            value[value > 0]
        return finite(what, value, so_far)

    population.finite = asking  # type: ignore[method-assign]


def act(learner: Learner) -> None:
    """An acting step and a greedy one, from the host's arrays: all tensors meet in one place."""
    population, network = learner.population, learner.population.network
    P, E, A = population.members, population.num_envs, network.n_actions
    obs, none = np.zeros((P, E, network.obs_size), np.float32), np.zeros((P, E), bool)
    action = population.act(obs, none, np.ones((P, E, A), bool), 0.5)
    greedy = GreedyActor(network, population.online, E)
    out = greedy.step(obs.reshape(P * E, -1), None, none.reshape(-1))
    assert {v.device for v in (action, *population.state, *out, greedy.h)} == {CUDA}


def main(kernels: str, control: str) -> str:
    learners = [make([1, 2], deferred=True, **v) for v in ({}, {"tau": 0.1, "sync_every": 1}, {"memory": False})]
    _native.CUDA = kernels == "compiled"
    with FakeTensorMode(allow_non_fake_inputs=True), NoDownload() as seen:
        for learner in learners:
            fake(learner)
            spoil(learner, control)
            try:
                for _ in range(3):  # the third one syncs the target
                    metrics = learner.update()
            except Exception as error:
                if control == "none":
                    raise
                return type(error).__name__
            assert all(value.device == CUDA for value in metrics.values())
            act(learner)
    assert ("townlet.td_unroll.default" in seen.ran) == (kernels == "compiled"), seen.ran
    return "no wait"


if __name__ == "__main__":
    devices.upload = lambda value, device: value.to(device)  # there is no pinned memory to pass through
    reference.upload = devices.upload  # type: ignore[attr-defined]
    reference.check_epsilon = lambda epsilon: None  # a number of the host that is fake here too
    for control in sys.argv[3:]:
        print(main(sys.argv[2], control))
