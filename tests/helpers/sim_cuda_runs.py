"""Training on the simulated GPU of `sim_cuda`.

python tests/helpers/sim_cuda_runs.py LIBRARY SCENARIO ... (a process of its own: the library has to be there before
torch).
A scenario is the name of a function below, "update:VARIANT", or one of them with a fault put in on purpose:
"SCENARIO/FAULT". Prints for each "ok", or the kind of its error and the first line of the message.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fake_gpu

if __name__ == "__main__":  # before torch is imported
    fake_gpu.load(sys.argv[1])

import numpy as np
import pytest
import sim_cuda
import torch
from image_worlds import signs
from learners import make, state_of
from sim_cuda import CUDA, GPU, Simulated
from torch import Tensor
from worlds import clock, tiny

from townlet import ops
from townlet.doctor import cuda as doctor_cuda
from townlet.learning import learner
from townlet.learning.cuda_graph import WARM_UP, Replayed
from townlet.learning.learner import Learner
from townlet.learning.networks import RecurrentConvQNetwork
from townlet.ops import reference
from townlet.report import Agent, compare
from townlet.support import devices
from townlet.training.trainer import Trainer

# ---- the device itself --------------------------------------------------------------------------------------------


def device() -> None:
    """What a GPU does and what it refuses."""
    a = torch.zeros(3, device="cuda")
    b = a + 1
    b[1:].mul_(5)
    weight = torch.ones(2, 3, device=CUDA).requires_grad_()
    (weight * b).sum().backward()
    assert isinstance(weight.grad, Simulated)
    assert weight.grad.device == CUDA
    assert weight.grad.cpu().tolist() == [[1, 5, 5]] * 2
    assert (torch.tensor([1.0, 2, 3], device="cuda") - 1).cpu().tolist() == [0, 1, 2]
    assert (b * torch.tensor(2.0)).cpu().tolist() == [2, 10, 10]  # a number of the CPU may join in
    here = torch.ones(3)
    two_devices = (
        lambda: a + here, lambda: torch.equal(a, here), lambda: torch.stack([a, here]), lambda: a.view(1, 3) @ here,
        lambda: torch.cat([a, torch.tensor(1.0).view(1)]), lambda: torch.where(a > 0, a, here),
        lambda: torch._foreach_add_([a], [here]),
    )  # fmt: skip
    for call in two_devices:
        with pytest.raises(RuntimeError, match="on the same device"):
            call()
    with pytest.raises(ValueError, match=r"reward is on cpu; expected cuda:0, the weights' device"):
        split_operands()
    for convert in (lambda: a.numpy(), lambda: np.asarray(a)):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            convert()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        a.pin_memory()
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        here.view(3, 1).expand(3, 2).pin_memory()
    assert here.view(3, 1).T.pin_memory().tolist() == [[1, 1, 1]]


def split_operands() -> None:
    """The operator with one of its tensors left on the CPU."""
    one = make([1], device="cuda")

    def split(online: Any, target: Any, batch: Any, *rest: Any) -> Any:
        return ops.td_unroll(online, target, batch._replace(reward=batch.reward.cpu()), *rest)

    one.td_unroll = split
    one.update()


def waiting() -> None:
    """What the CPU waits for on a GPU is counted, and nothing else is."""
    a, index, mask = torch.arange(4.0, device=CUDA), torch.tensor([1], device=CUDA), torch.ones(4, device=CUDA) > 0
    cases: dict[str, Callable[[], object]] = {
        "a number is read": lambda: float(a.sum()),
        "tensors are compared on the CPU": lambda: torch.equal(a, a),
        "a copy to the CPU": lambda: a.cpu(),
        "a size is read": lambda: (a.nonzero(), a[mask]),
        "a copy from the CPU": lambda: (
            torch.ones(3).to(CUDA), torch.tensor([1], device=CUDA), torch.ones(3).pin_memory().to(CUDA),
            a[torch.tensor([1])], a.__setitem__(index, 2.0), a.copy_(torch.ones(4)),
        ),
    }  # fmt: skip
    expected = {"a size is read": 2, "a copy from the CPU": 6}
    for what, call in cases.items():
        assert waits_of(call) == {what: expected.get(what, 1)}, what
    free = (
        lambda: devices.upload(torch.ones(3), CUDA), lambda: a.index_fill_(0, index, 2.0), lambda: a[index],
        lambda: a.__setitem__(mask, 1.0), lambda: a.__setitem__(slice(1, 2), 3.0), lambda: a.fill_(torch.tensor(1.0)),
    )  # fmt: skip
    for call in free:
        assert waits_of(call) == {}


def waits_of(call: Callable[[], object]) -> dict[str, int]:
    before = GPU.waits.copy()
    call()
    return dict(sorted((GPU.waits - before).items()))


# ---- the update ---------------------------------------------------------------------------------------------------

ROUNDING = 1e-5  # observed 4e-7, over weights, moments and metrics
NORM = 3e-4  # observed 7e-5: torch's norm of half a million numbers, in float32 on the CPU
BFLOAT16 = 5e-3  # observed 1e-3 in the norm, 2e-4 in weights
VARIANTS: dict[str, dict[str, Any]] = {
    "mlp, uniform replay": {},
    "prioritised replay": {"prioritised": True},
    "soft target": {"tau": 0.3},
    "without memory": {"memory": False},
    "running average": {"ema_decay": 0.9},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "conv": {"network": "conv", "members": 2},
    "spatial": {"network": "spatial", "tau": 0.3, "batch_size": 2, "eval_max_steps": 20},
}


def runs_of(**settings: Any) -> tuple[Trainer, Trainer, Trainer]:
    """The same run on the CPU, on the device, and there with a recorded update; all in the state of the first."""
    settings = {"sync_every": 2, **settings}
    config = {"conv": signs, "spatial": tiny}.get(settings.get("network", ""), clock)
    here = Trainer(config(**settings))
    for _ in range(20):
        here.act_step()
    there = [Trainer(config(**settings, device="cuda", cuda_graph=graph)) for graph in (False, True)]
    for run in there:
        run.population.load_state_dict(here.population.state_dict())
        run.replay.load_state_dict(here.replay.state_dict())
    return here, there[0], there[1]


def weights(run: Trainer) -> list[Tensor]:
    average = run.population.average_flat
    return [*state_of(run.learner), *([] if average is None else [average.clone()])]


def distance(got: Tensor, want: Tensor) -> float:
    """Largest error of a number, relative where the number is larger than 1."""
    return float(((got.cpu() - want).abs() / want.abs().clamp(min=1)).max())


def update(variant: str) -> None:
    """Evaluation on the device gives what it gives on the CPU, and so do updates. None of them waits, and recorded ones
    are the same in every bit."""
    here, plain, recorded = runs_of(**VARIANTS[variant])
    for name in ("returns", "lengths"):
        assert np.array_equal(getattr(here.evaluate(), name), getattr(plain.evaluate(), name)), name
    rounding, norm = (BFLOAT16, BFLOAT16) if variant == "bfloat16" else (ROUNDING, NORM)
    errors: dict[str, float] = {}
    for _ in range(6 if "tau" in VARIANTS[variant] else 10):  # with hard syncs there are two recordings
        metrics = here.learner.update()
        before = GPU.waits.copy()
        on_gpu, replayed = plain.learner.update(), recorded.learner.update()
        assert GPU.waits == before, GPU.waits - before
        for name, value in metrics.items():
            errors[name] = max(errors.get(name, 0.0), distance(on_gpu[name], value))
            assert torch.equal(on_gpu[name], replayed[name]), name
    check_recorded(recorded.learner)
    for run in (plain, recorded):
        run.population.check()
    for i, (a, b, c) in enumerate(zip(weights(here), weights(plain), weights(recorded), strict=True)):
        errors[f"weights {i}"] = distance(b, a)
        assert torch.equal(b, c)
    for name, error in errors.items():
        assert error <= (norm if name == "grad_norm" else rounding), (name, error)


def check_recorded(learner: Learner) -> None:
    """The update was captured and replayed."""
    assert learner.replayed is not None
    assert learner.replayed.refused is None, learner.replayed.refused
    expected = sum(max(0, runs - WARM_UP - 1) for runs in learner.replayed._runs.values())
    replays = learner.replayed._recorder.replays  # type: ignore[attr-defined]
    assert replays == expected > 0, (replays, expected)


def update_without_target() -> None:
    """Likewise without a target network, which a run has no setting for."""
    here, there = make([1, 2], use_target=False), make([1, 2], use_target=False, device="cuda", graph=True)
    for part in ("population", "replay"):
        getattr(there, part).load_state_dict(getattr(here, part).state_dict())
    for _ in range(10):
        here.update()
        there.update()
    check_recorded(there)
    for a, b in zip(state_of(here), state_of(there), strict=True):
        assert torch.allclose(a, b.cpu(), atol=ROUNDING)  # observed 4e-7


def doctor() -> None:
    """What ``townlet doctor --device cuda`` says of the update."""
    for label, error, allowed in doctor_cuda.update_checks(CUDA, record=True):
        assert error <= allowed, f"{label}: {error}"


@cache
def filled() -> Learner:
    return make([1, 2], device="cuda", sync_every=1000)


def captured() -> None:
    """The update can be recorded; with a fault in it, the reason why it cannot is raised."""
    there = filled()
    there.replayed = Replayed(sim_cuda.SimulatedRecorder(CUDA))
    for _ in range(WARM_UP + 1):
        there.update()
    if there.replayed.refused is not None:
        raise RuntimeError(there.replayed.refused)


# ---- whole runs ---------------------------------------------------------------------------------------------------


def act() -> None:
    """A step of all environments waits once, for the actions."""
    run = Trainer(clock(device="cuda"))
    for _ in range(12):
        waits = waits_of(run.act_step)
        assert waits == {"a copy to the CPU": 1}, waits


def train() -> None:
    """A whole run with evaluations and checkpoints, and the comparison at its end."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"eval_every": 80, "checkpoint_every": 80, "eval_max_steps": 40, "replay_ratio": 3.0}
        settings |= {"ema_decay": 0.9, "lr_decay_steps": 100}
        run = Trainer(tiny(device="cuda", run_dir=f"{folder}/run", **settings))
        run.train()
        check_recorded(run.learner)
        assert (Path(folder) / "run" / "agent.ckpt").exists()
        assert len(run.evaluations) == 2
        compare(Agent.of(run), 2, 0)


def resume() -> None:
    """A run goes from the CPU to the device and back, bit for bit at each change, and trains on."""
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(clock(run_dir=f"{folder}/run", total_steps=80))
        run.train()
        for steps, place in ((120, "cuda"), (160, "cpu"), (200, "cuda")):
            before, updates = run, run.updates
            run = Trainer.resume(f"{folder}/run", {"device": place, "total_steps": steps})
            assert run.population.device.type == place
            mine = [*weights(run), *run.population.state, *run.replay._data.values()]
            theirs = [*weights(before), *before.population.state, *before.replay._data.values()]
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(mine, theirs, strict=True))
            run.train()
            assert run.updates > updates


def pbt() -> None:
    """Members are copied on the device, into the tensors that a recording reads."""
    explored = {"lr": "log:1e-4:1e-2", "gamma": "lin:0.5:0.9", "clip_norm": "lin:0.1:9"}
    copying = {"members": 4, "pbt_every": 24, "pbt_explore": list(explored), "lr": 1e-2, **explored}
    run = Trainer(clock(device="cuda", replay_ratio=4.0, **copying))
    begun = run.population.copy_members
    copies = 0

    def checked(members: list[int], parents: list[int]) -> None:
        nonlocal copies
        begun(members, parents)
        copies += len(members)
        for flat in state_of(run.learner):
            assert torch.equal(flat.cpu()[members], flat.cpu()[parents])

    run.population.copy_members = checked  # type: ignore[method-assign]
    run.train()
    check_recorded(run.learner)
    assert copies == len(run.pbt.lineage) >= 3
    for name in explored:
        held = getattr(run.population, name).cpu()
        assert torch.equal(held, torch.from_numpy(run.schedules.hyper[name]).float()), name


# ---- faults on purpose --------------------------------------------------------------------------------------------


def gamma_stays(patch: pytest.MonkeyPatch) -> None:
    """The learner compares a gamma that lies on the device with one of the CPU."""

    def per_member(name: str, value: Any, members: int) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(members).clone()

    patch.setattr(learner, "per_member", per_member)


def pins_expanded(patch: pytest.MonkeyPatch) -> None:
    """Uploads pin a tensor as it comes."""

    def upload(value: Tensor, device: torch.device) -> Tensor:
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)

    patch.setattr(devices, "upload", upload)
    patch.setattr(reference, "upload", upload)


def symbols_of_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """The convolutional network brings its table of symbols from the CPU whenever it sees."""
    planes = RecurrentConvQNetwork._planes

    def brought(self: RecurrentConvQNetwork, numbers: Tensor) -> Tensor:
        torch.tensor(self.image.symbols).to(numbers.device)
        return planes(self, numbers)

    patch.setattr(RecurrentConvQNetwork, "_planes", brought)


def windows_by_number(patch: pytest.MonkeyPatch) -> None:
    """The buffer drops windows by `start[slot] = -1`."""
    patch.setattr(Tensor, "index_fill_", lambda self, dim, index, value: self.__setitem__(index, value))


def inside_the_update(what: Callable[[Tensor], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """The update does `what` besides, with its losses."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        finite = learner.VectorizedPopulation.finite

        def spoilt(self: Any, label: str, value: Tensor, so_far: Tensor | None = None) -> Tensor | None:
            if label == "loss":
                what(value.detach())
            return finite(self, label, value, so_far)

        patch.setattr(learner.VectorizedPopulation, "finite", spoilt)

    return spoil


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gamma stays on the device": gamma_stays,
    "pins expanded tensors": pins_expanded,
    "symbols of the CPU": symbols_of_the_cpu,
    "windows dropped by number": windows_by_number,
    "item": inside_the_update(lambda loss: loss.sum().item()),
    "bool": inside_the_update(lambda loss: bool((loss > 0).any())),
    "equal": inside_the_update(lambda loss: torch.equal(loss, loss)),
    "nonzero": inside_the_update(lambda loss: loss.nonzero()),
    "mask": inside_the_update(lambda loss: loss[loss > 0]),
    "mask written": inside_the_update(lambda loss: loss.clone().__setitem__(loss > 0, loss[:1])),
    "number written": inside_the_update(lambda loss: loss.clone().__setitem__(torch.arange(1, device=CUDA), 0.0)),
    "index of the CPU": inside_the_update(lambda loss: loss[torch.tensor([0])]),
    "download": inside_the_update(lambda loss: loss.cpu()),
    "download in place": inside_the_update(lambda loss: torch.empty(loss.shape).copy_(loss)),
    "upload": inside_the_update(lambda loss: torch.ones(2).to(loss.device)),
    "upload in place": inside_the_update(lambda loss: loss.clone().copy_(torch.ones(loss.shape))),
    "new tensor": inside_the_update(lambda loss: torch.tensor([1.0], device=loss.device)),
    "pin": inside_the_update(lambda loss: torch.ones(2).pin_memory()),
    "numpy": inside_the_update(lambda loss: loss.numpy()),
    "two devices": inside_the_update(lambda loss: loss + torch.ones(loss.shape)),
}


def main(name: str) -> str:
    scenario, _, fault = name.partition("/")
    call, _, variant = scenario.partition(":")
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        if fault:
            FAULTS[fault](patch)
        try:
            globals()[call](*([variant] if variant else []))
        except Exception as caught:
            if not fault:
                raise
            return f"{type(caught).__name__}: {(str(caught) or 'no message').splitlines()[0]}"
    return "ok"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sim_cuda.simulate()
    for scenario in sys.argv[2:]:
        print(main(scenario), flush=True)
