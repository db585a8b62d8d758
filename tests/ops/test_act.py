"""`act`: encoder, LSTM step, head and choice in one call, against its twin and against itself in other company."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from op_cases import Case, deviation, draw_params
from torch import Tensor

from townlet import _C, ops, reference
from townlet.ops import ActorParams, ActOutput, RecurrentQParams, backend

TOL = 2e-6  # of values against the float64 twin; observed 1.0e-6


class Size(NamedTuple):
    """Sizes of one call; `widths` are the encoder's layers."""

    P: int = 2
    E: int = 9
    obs: int = 7
    widths: tuple[int, ...] = (10,)
    H: int = 6
    F: int | None = 5
    A: int = 4
    dueling: bool = True


SIZES = [
    Size(),
    Size(P=1, E=1, obs=1, widths=(), H=1, F=None, A=1, dueling=False),
    Size(widths=()),
    Size(widths=(3, 17, 9)),
    Size(P=3, E=50, obs=33, widths=(16,), H=16, F=16, A=16, dueling=False),
    Size(P=1, E=257, obs=78, widths=(128,), H=128, F=128, A=6),
    Size(P=5, E=3, obs=20, widths=(65, 70), H=67, F=None, A=17),
    Size(P=1, E=70, obs=12, widths=(130,), H=300, F=40, A=3),
]


def draw_actor(size: Size) -> ActorParams:
    g = torch.Generator().manual_seed(0)
    sizes = (size.obs, *size.widths)
    layers = tuple(
        (torch.randn(size.P, b, a, generator=g) * math.sqrt(2 / a), torch.randn(size.P, b, generator=g) * 0.3)
        for a, b in itertools.pairwise(sizes)
    )
    case = Case(P=size.P, D=sizes[-1], H=size.H, F=size.F, A=size.A, dueling=size.dueling)
    return ActorParams(layers, draw_params(case, g))


def draw_inputs(size: Size, seed: int = 0) -> dict[str, Any]:
    """Arguments of `act` behind the actor; some rows allow nothing."""
    g = torch.Generator().manual_seed(seed)
    P, E = size.P, size.E
    return {
        "obs": torch.randn(P, E, size.obs, generator=g),
        "h": torch.tanh(torch.randn(P, E, size.H, generator=g)),
        "c": torch.randn(P, E, size.H, generator=g),
        "reset": torch.rand(P, E, generator=g) < 0.3,
        "legal": (torch.rand(P, E, size.A, generator=g) < 0.6) & (torch.rand(P, E, 1, generator=g) < 0.9),
        "epsilon": torch.rand(P, E, generator=g, dtype=torch.float64),
        "seeds": torch.randint(2**62, (P,), generator=g),
        "step": 12345,
    }


def double(actor: ActorParams) -> ActorParams:
    layers = tuple((w.double(), b.double()) for w, b in actor.layers)
    return ActorParams(layers, RecurrentQParams(*(None if v is None else v.double() for v in actor.recurrent)))


def with_double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def same(a: ActOutput, b: ActOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("optional", [True, False])
def test_equals_the_twin(size: Size, optional: bool) -> None:
    actor, inputs = draw_actor(size), draw_inputs(size)
    if not optional:
        inputs |= dict.fromkeys(("reset", "legal", "epsilon", "seeds"))
    got = ops.act(ops.pack_actor(actor), **inputs)
    want = reference.act(double(actor), **with_double(inputs))
    for name in ("q", "h", "c"):
        assert deviation(getattr(got, name), getattr(want, name)).scaled < TOL, name
    choice = (inputs["legal"], inputs["epsilon"], inputs["seeds"], inputs["step"])
    assert torch.equal(got.action, reference.choose(got.q, *choice))
    assert (got.action == want.action).double().mean() > 0.99  # a near tie may fall either way
    if size.E > 20:  # controls: what goes wrong is seen
        without = reference.act(double(actor), **with_double(inputs | {"h": torch.zeros_like(inputs["h"])}))
        assert deviation(got.q, without.q).scaled > 1e3 * TOL
        if optional:
            assert not torch.equal(got.action, reference.choose(got.q, None, *choice[1:]))
            assert not torch.equal(got.action, reference.choose(got.q, *choice[:3], 12346))
            assert not torch.equal(got.action, reference.choose(got.q, choice[0], None, None, 0))


def test_float64_runs_in_the_reference() -> None:
    size = Size()
    actor, inputs = double(draw_actor(size)), with_double(draw_inputs(size))
    backend.announced.discard("act float64 tensors on cpu")
    with pytest.warns(UserWarning, match="no compiled act takes float64"):
        packed = ops.pack_actor(actor)
    want = reference.act(actor, **inputs)
    for weight, _ in actor.layers:
        weight.zero_()  # the pack is a snapshot
    assert same(ops.act(packed, **inputs), want)


@pytest.mark.parametrize("size", [SIZES[5], SIZES[6]], ids=str)
def test_threads_do_not_matter(size: Size) -> None:
    actor, inputs = draw_actor(size), draw_inputs(size)
    before, outputs, packs = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            packs.append(ops.pack_actor(actor))
            outputs.append(ops.act(packs[-1], **inputs))
    finally:
        torch.set_num_threads(before)
    for pack, out in zip(packs[1:], outputs[1:], strict=True):
        assert pack.encoder is not None
        assert torch.equal(pack.encoder, packs[0].encoder)
        assert same(out, outputs[0])


@pytest.mark.parametrize("size", SIZES[2:6], ids=str)
def test_rows_and_members_do_not_meet(size: Size) -> None:
    """A member alone, and its first environments alone, compute the same bits as in company."""
    actor, inputs = draw_actor(size), draw_inputs(size)
    out = ops.act(ops.pack_actor(actor), **inputs)
    for p in range(size.P):
        one = ActorParams(
            tuple((w[p : p + 1], b[p : p + 1]) for w, b in actor.layers),
            RecurrentQParams(*(None if v is None else v[p : p + 1] for v in actor.recurrent)),
        )
        for n in (1, size.E // 2, size.E):
            few = {
                k: v if not isinstance(v, Tensor) else v[p : p + 1] if k == "seeds" else v[p : p + 1, :n]
                for k, v in inputs.items()
            }
            alone = ops.act(ops.pack_actor(one), **few)
            assert same(alone, ActOutput(*(v[p : p + 1, :n] for v in out)))


def test_a_reset_row_forgets_and_the_state_given_stays_as_it_was() -> None:
    size = SIZES[4]
    actor, inputs = ops.pack_actor(draw_actor(size)), draw_inputs(size)
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    first = ops.act(actor, **inputs)
    for k, v in inputs.items():
        assert torch.equal(v, copies[k]) if isinstance(v, Tensor) else v == copies[k]
    other = inputs | {"h": torch.randn_like(inputs["h"]), "c": torch.randn_like(inputs["c"])}
    second = ops.act(actor, **other)
    assert torch.equal((first.q == second.q).all(-1), inputs["reset"])
    other["h"][inputs["reset"]] = other["c"][inputs["reset"]] = float("nan")  # what a reset drops may be anything
    assert same(ops.act(actor, **other), second)


def test_ties_and_rows_without_a_legal_action() -> None:
    size = Size(P=1, E=4, A=4, F=None, dueling=False)
    actor, inputs = draw_actor(size), draw_inputs(size)
    actor.recurrent.w_adv.zero_()
    actor.recurrent.b_adv.zero_()
    legal = torch.tensor([[[True] * 4, [False, False, True, True], [False] * 4, [False, True, False, True]]])
    inputs |= {"legal": legal, "epsilon": None, "seeds": None}
    assert ops.act(ops.pack_actor(actor), **inputs).action.tolist() == [[0, 2, 0, 1]]
    actor.recurrent.b_adv[0] = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert ops.act(ops.pack_actor(actor), **inputs).action.tolist() == [[1, 2, 1, 1]]


def test_draws_are_philox_of_seed_step_and_environment() -> None:
    """Written down once more, so that a seed keeps meaning the same exploration."""
    size = Size(P=1, E=5, A=4)
    inputs = draw_inputs(size) | {"legal": None, "epsilon": torch.ones(1, 5, dtype=torch.float64)}
    inputs |= {"seeds": torch.tensor([42]), "step": 7}
    draws = _C.philox_uniform(inputs["seeds"].numpy().astype("uint64"), 1, 7, 10).reshape(5, 2)
    assert ops.act(ops.pack_actor(draw_actor(size)), **inputs).action[0].tolist() == [int(4 * d) for d in draws[:, 1]]
    inputs["epsilon"] = torch.from_numpy(draws[:, 0]).view(1, 5)  # a draw must lie below epsilon, not at it
    greedy = ops.act(ops.pack_actor(draw_actor(size)), **(inputs | {"epsilon": None, "seeds": None}))
    assert torch.equal(ops.act(ops.pack_actor(draw_actor(size)), **inputs).action, greedy.action)


def test_the_pack_is_a_snapshot() -> None:
    size = Size()
    actor, inputs = draw_actor(size), draw_inputs(size)
    packed = ops.pack_actor(actor)
    before = ops.act(packed, **inputs)
    for v in (*(t for layer in actor.layers for t in layer), *actor.recurrent):
        assert v is not None
        v.mul_(2)
        after = ops.act(ops.pack_actor(actor), **inputs)
        assert not torch.equal(after.q, before.q)  # every weight has a say
        v.mul_(0.5)
        assert same(ops.act(packed, **inputs), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": torch.zeros(2, 9, 8)}, r"obs has shape \[2, 9, 8\]; expected \[P, E, obs_size\] = \[2, 9, 7\]"),
        ({"obs": torch.zeros(2, 9, 7, dtype=torch.float64)}, r"obs has dtype torch.float64; expected torch.float32"),
        ({"h": torch.zeros(2, 9, 5)}, r"h has shape \[2, 9, 5\]; expected \[P, E, H\] = \[2, 9, 6\]"),
        ({"c": torch.zeros(2, 8, 6)}, r"c has shape \[2, 8, 6\]"),
        ({"reset": torch.zeros(2, 9)}, r"reset has dtype torch.float32; expected torch.bool"),
        ({"legal": torch.ones(2, 9, 3, dtype=torch.bool)}, r"legal has shape \[2, 9, 3\]; expected \[P, E, A\]"),
        ({"epsilon": torch.zeros(2, 9)}, r"epsilon has dtype torch.float32; expected torch.float64"),
        ({"epsilon": None}, "epsilon is None; expected a tensor, as seeds is"),
        ({"seeds": None}, "epsilon is a tensor; expected None, as seeds is"),
        (
            {"epsilon": torch.full((2, 9), 1.5, dtype=torch.float64)},
            r"epsilon is 1.5 at \[0, 0\]; expected values in \[0, 1\]",
        ),
        (
            {"epsilon": (torch.arange(18).view(2, 9) == 14).double() * (1 + 2**-40)},
            r"epsilon is 1.0000000000009095 at \[1, 5\]; expected values in \[0, 1\]",
        ),
        (
            {"epsilon": torch.full((2, 9), math.nan, dtype=torch.float64)},
            r"epsilon is nan at \[0, 0\]; expected values in \[0, 1\]",
        ),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds has shape \[3\]; expected \[P\] = \[2\]"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    actor, inputs = draw_actor(Size()), draw_inputs(Size()) | change
    for call, network in ((ops.act, ops.pack_actor(actor)), (reference.act, actor)):
        with pytest.raises(ValueError, match=message):
            call(network, **inputs)


def test_errors_of_the_network_name_the_parameter() -> None:
    actor = draw_actor(Size(widths=(10, 11)))
    (w0, b0), (w1, b1) = actor.layers
    for layers, message in (
        (((w0, b0),), r"layers\[0\].weight has 10 outputs; expected D = 11"),
        (((w0, b0), (w1[:, :, 1:], b1)), r"layers\[1\].weight has shape \[2, 11, 9\]; expected \[2, 11, 10\]"),
        (((w0, b0[:1]), (w1, b1)), r"layers\[0\].bias has shape \[1, 10\]; expected \[2, 10\]"),
        (((w0[0], b0), (w1, b1)), r"layers\[0\].weight has shape \[10, 7\]; expected \[P, out, in\]"),
        (((w0.double(), b0), (w1, b1)), r"layers\[0\].weight has dtype float64"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.pack_actor(ActorParams(layers, actor.recurrent))


@pytest.mark.parametrize("isa", [i for i in ops.ISA_LEVELS if i != ops.ISA])
def test_other_instruction_sets(isa: str) -> None:
    """This file again in a process that is told which kernels to use."""
    environment = {**os.environ, "TOWNLET_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not other_instruction"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
