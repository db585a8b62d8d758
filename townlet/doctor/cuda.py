"""What ``townlet doctor --device cuda`` adds: sizes for each kernel plan, the whole update, and a short benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from .. import _native
from .._build import form_refused
from ..learning.learner import Learner
from ..learning.networks import RecurrentQNetwork
from ..learning.population import VectorizedPopulation
from ..learning.replay import SequentialReplayBuffer
from ..ops import TDSpec
from ..support import devices
from .checks import CPU, Check, td_checks

HIDDEN = (64, 128, 256, 512)
"""The LSTM units checked, from the most that one block can hold the weights of to what only the step-by-step kernel
takes."""

BFLOAT16 = 5e-2
"""The error allowed where operands are rounded. A state that is rounded the other way moves all that follows (seen on
the CPU: 2e-2)."""

MEASURED = ((16, 8, 64, 128), (64, 32, 128, 256), (64, 80, 256, 512))
"""B, S, D, H of the short benchmark."""

UPDATE = 1e-3
"""The absolute error of weights allowed after a few updates, each of which moves them by up to lr = 1e-2."""


def need_kernels() -> None:
    """Make sure that there are CUDA kernels to check.

    Raises:
        ValueError: there are none, so that tensors on a GPU would run in the twins.
    """
    if not _native.CUDA:
        raise ValueError(f"there are no CUDA kernels to check: {_native.WHY_NOT_CUDA}")


def checks(device: torch.device) -> Iterator[Check]:
    """Check `td_unroll` at larger sizes in both precisions, then the learner's update."""
    g = torch.Generator().manual_seed(2)
    for hidden in HIDDEN:
        yield from td_checks(f"td_unroll, H = {hidden}", {"n_step": 3}, g, hidden=hidden, device=device)
        # There is a single action, because rounding would choose another one where two are about equal.
        rounded = {"n_step": 3, "compute_dtype": torch.bfloat16}
        label = f"td_unroll, H = {hidden}, bfloat16"
        yield from td_checks(label, rounded, g, hidden=hidden, actions=1, device=device, allowed=BFLOAT16)
    yield from update_checks(device, record=True)


def update_checks(device: torch.device, record: bool) -> Iterator[Check]:
    """Compare the weights after six updates on ``device`` with those after the same updates on the CPU.

    Args:
        device: the device to check.
        record: whether to check the update recorded as a CUDA graph as well.
    """
    here = learner(CPU)
    sizes = here.population.members, here.batch_size, here.replay.seq_len + 1, here.replay.hidden_size
    refused = form_refused(device, *sizes, chains=2)
    if refused:
        yield "weights after 6 updates", refused, UPDATE
        return
    there = [learner(device, graph) for graph in ([False, True] if record else [False])]
    for each in there:
        each.population.load_state_dict(here.population.state_dict())
        each.replay.load_state_dict(here.replay.state_dict())
    for _ in range(6):
        for each in (here, *there):
            each.update()
    want = here.population.online_flat
    for each, how in zip(there, ("as it stands", "recorded as a CUDA graph"), strict=False):
        each.population.check()
        error = float((each.population.online_flat.cpu() - want).abs().max())
        if each.replayed is not None and each.replayed.refused:
            how, error = f"{how}: {each.replayed.refused}", math.inf
        yield f"weights after 6 updates, {how}", error, UPDATE


def learner(device: torch.device, graph: bool = False) -> Learner:
    """A learner of two members whose replay holds random streams.

    Args:
        device: where it lives.
        graph: whether it records its update as a CUDA graph.
    """
    P, E, S, obs_size, A = 2, 4, 6, 5, 3
    network = RecurrentQNetwork(obs_size, A, encoder=(9,), hidden_size=33, head_size=17)
    population = VectorizedPopulation(network, [0, 1], num_envs=E, lr=1e-2, device=device)
    replay = SequentialReplayBuffer(
        members=P, num_envs=E, capacity=E * 42, obs_size=obs_size, n_actions=A, hidden_size=33, seq_len=S,
        seeds=[0, 1], prioritised=True, device=device,
    )  # fmt: skip
    g = torch.Generator().manual_seed(3)
    for _ in range(40):
        obs, chance = torch.rand(P, E, obs_size, generator=g), torch.rand(4, P, E, generator=g)
        h, c = torch.rand(2, P, E, 33, generator=g) - 0.5
        action = torch.randint(A, (P, E), generator=g)
        replay.add(obs, chance[0] < 0.1, None, h, c, action, chance[1], chance[2] < 0.1, chance[3] < 0.9)
    spec = TDSpec(n_step=3, burn_in=2, rescale_eps=1e-3)
    return Learner(population, replay, spec, batch_size=16, sync_every=1, tau=0.1, graph=graph)


def measure(device: torch.device, out: Callable[[str], None]) -> None:
    """Time the operator beside `torch.nn.LSTM` (cuDNN). Each result is checked first.

    A peer whose result is wrong, or that fails, is not timed, and a line below the table says so.

    Args:
        device: the GPU.
        out: receives the lines.

    Raises:
        WrongResult: the operator's own result is wrong.
    """
    from ..bench import gpu, peers, results
    from ..bench.problem import TF32, Precision, Shape, check, draw, expected, judge, ours

    peaks = gpu.peaks(device)
    out("")
    out(
        f"{devices.device_name(device)}: "
        f"torch.mm {peaks['fp32'] / 1e12:.1f} TFLOP/s fp32, {peaks['bf16'] / 1e12:.1f} bf16"
    )
    rows = [["B, S, D, H", "", "median ms", "nn.LSTM ms", "nn.LSTM / this"]]
    notes = []
    for shape in (Shape(*sizes) for sizes in MEASURED):
        for dtype in (torch.float32, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            problem = draw(shape, compute_dtype=dtype).on(device)
            want = expected(problem)
            calls = {"": ours(problem)}
            check(f"townlet, {kind}", calls[""](), want, dtype)
            theirs: dict[str, tuple[Precision, peers.Update]] = {kind: (dtype, peers.nn_lstm(problem, dtype))}
            if dtype == torch.float32:
                theirs["nn.LSTM in TF32"] = (TF32, peers.nn_lstm(problem, tf32=True))
            for name, (precision, call) in theirs.items():
                verdict = judge(f"{shape}, nn.LSTM in {str(precision).removeprefix('torch.')}", call, want, precision)
                if isinstance(verdict, str):
                    notes.append(verdict)
                else:
                    calls[name] = call
            seconds = {name: t.median * 1e3 for name, t in gpu.interleave(calls, rounds=7, budget=3).items()}
            mine = seconds[""]
            for name in theirs:
                other = seconds.get(name)
                beside = ["", ""] if other is None else [f"{other:.3f}", f"{other / mine:.2f}x"]
                rows.append([str(shape), name, f"{mine:.3f}", *beside])
    out(results.text(rows))
    for note in notes:
        out(f"({note})")
