"""Every op of `torch.ops.townlet` as torch sees it: schema, fake kernel, autograd registration, torch.compile.

Sample arguments are not written down here but recorded: the public functions run under a dispatch mode that notes each
call of the namespace, so that a new op without a sample turns `test_every_op_is_sampled` red.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import Case, Problem, deviation, draw, leaves
from replay_cases import OBS, buffer, step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from townlet import ops
from townlet.learning.networks import RecurrentSpatialQNetwork
from townlet.ops import ActorParams, RecurrentQParams, TDOutput
from townlet.ops.td_unroll import Arguments
from townlet.ops.types import ReplaySteps, ReplayStores, ReplayTables, SpatialWeights

CASE = Case(P=2, B=2, S=4)
Call = tuple[str, Callable[..., Any], tuple[Any, ...]]


def registered() -> set[str]:
    """Names of all ops of the namespace, overloads included."""
    names = torch._C._dispatch_get_all_op_names()
    return {n if "." in n else f"{n}.default" for n in names if n.startswith("townlet::")}


class Recorder(TorchDispatchMode):
    """Notes the calls of townlet's ops, below autograd; `grad` says whether the caller wanted gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.grad = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "townlet":
            assert not kwargs
            grad = self.grad and not func.name().endswith("_backward")  # whose own derivative is refused
            written = func.name().endswith("_into")  # has no derivative of its own

            def kept(a: Any) -> Any:
                if isinstance(a, (list, tuple)):
                    return [kept(each) for each in a]
                if not isinstance(a, Tensor):
                    return a
                return a.detach().clone().requires_grad_(grad and not written and a.requires_grad)

            self.calls.append((f"{func.name()}.{func._overloadname}", func, tuple(kept(a) for a in args)))
        return func(*args, **(kwargs or {}))


def record() -> list[Call]:
    """Calls of every op over the variants that change which arguments are there."""
    torch.manual_seed(0)
    with Recorder() as recorder:
        for case in (CASE, replace(CASE, B=1, P=1, S=1, burn_in=0, target=False, legal=False, F=None, dueling=False)):
            recorder.grad = True
            p = leaves(draw(case))
            w, b = p.online, p.batch
            ops.td_unroll(*p).loss.sum().backward()
            home = RecurrentQParams(*(None if v is None else torch.empty_like(v) for v in w))
            ops.td_unroll(*p, grads=home)
            for reset in (b.reset, None):
                y, _, _ = ops.lstm_unroll(b.features_online, b.h0, b.c0, w.w_ih, w.w_hh, w.bias, reset)
                y.sum().backward()
                first = None if reset is None else reset[:, :, 0]
                ops.lstm_step(b.features_online[:, :, 0], b.h0, b.c0, ops.pack(w), reset=first)
            recorder.grad = False
            with torch.no_grad():
                ops.lstm_unroll(b.features_online, b.h0, b.c0, w.w_ih, w.w_hh, w.bias, b.reset)
                ops.td_unroll(*p.with_spec(compute_dtype=torch.bfloat16))
                rows = (b.h0, b.c0, b.reset[:, :, 0], None if b.legal is None else b.legal[:, :, 0])
                P, B, _, D = b.features_online.shape
                draws = (torch.rand(P, B).double(), torch.arange(P), 3)
                layers = ((torch.randn(P, 9, 4), torch.randn(P, 9)), (torch.randn(P, D, 9), torch.randn(P, D)))
                ops.act(ops.pack_actor(ActorParams(layers, w)), torch.randn(P, B, 4), *rows, *draws)
                ops.act(ops.pack_actor(ActorParams((), w)), b.features_online[:, :, 0], b.h0, b.c0)
            for store_legal in (False, True):
                replay = buffer(members=2, num_envs=2, seq_len=2, store_legal=store_legal)
                for value in range(4):
                    replay.add(**step(value, (2, 2)))
                replay.sample(3)
                replay.add_episode(0, torch.zeros(3, OBS), [0, 1], [0.5, 1.0], terminated=True)
        recorder.grad = True
        ops.td_unroll(*leaves(draw(CASE), features=False))
        for network in (RecurrentSpatialQNetwork(2, 3, 2), RecurrentSpatialQNetwork(1, 1, 1)):
            params = {k: v.requires_grad_() for k, v in network.init([0, 1]).items()}
            network.encode(params, torch.randn(2, 5, network.obs_size)).sum().backward()
        rows = torch.randn(4, 3, 20)
        for clip in (None, torch.ones(3)):
            ops.adam_step(*rows, torch.full((3,), 1e-3), clip, (0.9, 0.999), 1e-5, 1)
    return recorder.calls


CALLS = record()


def test_every_op_is_sampled() -> None:
    names = registered()
    for name in (
        "td_unroll",
        "td_unroll_into",
        "lstm_unroll",
        "lstm_unroll_backward",
        "lstm_step",
        "pack",
        "pack_encoder",
        "act",
        "adam_step",
        "replay_write",
        "replay_windows",
    ):
        assert f"townlet::{name}.default" in names
    # ops without a tensor (what the build is) run outside the dispatch mode and have no fake kernel to check
    plain = {n for n in names if "Tensor" not in str(getattr(torch.ops.townlet, n[9:-8]).default._schema)}
    assert plain == {
        f"townlet::{name}.default"
        for name in (
            "lanes",
            "isa",
            "isa_levels",
            "last_scratch",
            "last_item_first",
            "item_order",
            "td_unroll_scratch",
            "pack_size",
            "encoder_size",
            "lstm_saved_size",
            "unroll_plan",
        )
    }
    assert names - plain == {name for name, _, _ in CALLS}


def schema(op: str) -> list[str]:
    """The names of the operator's arguments, in their order."""
    return [a.name for a in getattr(torch.ops.townlet, op).default._schema.arguments]


def test_named_tuples_have_the_order_of_the_schemas() -> None:
    """Whoever moves an argument in C++ moves it in Python too: tuples are handed to the operators by position."""
    stores = [f"{name}_store" for name in ReplayStores._fields]
    tables = ["count" if name == "written" else name for name in ReplayTables._fields]
    assert schema("td_unroll") == list(Arguments._fields)
    assert schema("td_unroll_into") == [*(n for n in Arguments._fields if n != "param_grads"), "grads"]
    assert schema("pack") == [*RecurrentQParams._fields, "bf16"]
    assert schema("spatial_encode") == ["obs", *SpatialWeights._fields, "height", "width", "save"]
    sizes = ["first", "streams", "steps", "ring", "stride", "seq_len", "closes"]
    assert schema("replay_write") == [*stores, *tables, *ReplaySteps._fields, *sizes]
    assert schema("replay_windows") == [*stores, "slot", "start", "ring", "stride", "seq_len"]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CALLS}))
def test_opcheck(name: str) -> None:
    """Schema, autograd registration, fake tensors and ahead-of-time autograd, static and dynamic, on each sample."""
    for func, args in ((f, a) for n, f, a in CALLS if n == name):
        torch.library.opcheck(func, args)


def test_opcheck_would_see_a_wrong_fake_kernel() -> None:
    """Control: an op with the same behaviour and a fake kernel of another shape is refused."""

    @torch.library.custom_op("townlet_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x])

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
        torch.library.opcheck(twice._opoverload, (torch.zeros(3),))


class TestCompile:
    """torch.compile(fullgraph=True): no graph break, the same numbers and gradients as eager."""

    @staticmethod
    def step(scale: Tensor, problem: Problem) -> tuple[Tensor, TDOutput]:
        """A little network around the op: features are scaled below it, the loss squared above it."""
        x = problem.batch.features_online * scale
        out = ops.td_unroll(problem.online, problem.target, problem.batch._replace(features_online=x), problem.spec)
        return out.loss.square().sum(), out

    def run(self, f: Callable[..., Any], problem: Problem) -> tuple[TDOutput, list[Tensor]]:
        p = leaves(problem)
        scale = torch.full((), 1.5, requires_grad=True)
        loss, out = f(scale, p)
        inputs = [scale, p.batch.features_online, *(v for v in p.online if v is not None)]
        return out, list(torch.autograd.grad(loss, inputs))

    @pytest.mark.parametrize(
        "case",
        [
            CASE,
            replace(CASE, target=False, legal=False, member_gamma=False),
            replace(CASE, F=None, dueling=False, loss="mse", double_q=False, n_step=1, burn_in=0, rescale_eps=0.0),
        ],
        ids=str,
    )
    def test_td_unroll(self, case: Case) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(self.step, fullgraph=True, backend="aot_eager")
        problem = draw(case)
        got, got_grads = self.run(compiled, problem)
        want, want_grads = self.run(self.step, problem)
        for name, a, b in zip(TDOutput._fields, got, want, strict=True):
            assert torch.equal(a, b), name
            assert a.requires_grad == b.requires_grad, name
        for a, b in zip(got_grads, want_grads, strict=True):
            assert deviation(a, b).scaled < 1e-6  # observed 0

    def test_td_unroll_with_a_packed_target(self) -> None:
        torch._dynamo.reset()
        problem = draw(CASE)
        assert problem.target is not None
        handle = ops.pack(problem.target)

        def step(online: RecurrentQParams, batch: Any) -> Tensor:
            return ops.td_unroll(online, handle, batch, problem.spec).td_error

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(problem.online, problem.batch), step(problem.online, problem.batch))

    def test_dynamic_batch(self) -> None:
        """Another B and S through the same compiled function."""
        torch._dynamo.reset()
        compiled = torch.compile(self.step, fullgraph=True, backend="aot_eager", dynamic=True)
        small = replace(CASE, F=None, dueling=False, target=False, legal=False, member_gamma=False)
        for case in (replace(small, B=3, S=5), replace(small, B=7, S=9)):
            problem = draw(case)
            got, got_grads = self.run(compiled, problem)
            want, want_grads = self.run(self.step, problem)
            assert torch.equal(got.td_error, want.td_error)
            for a, b in zip(got_grads, want_grads, strict=True):
                assert deviation(a, b).scaled < 1e-6

    @pytest.mark.parametrize(("axis", "graphs"), [("batch", 1), ("units", 2)])
    def test_one_graph_for_batches_of_every_size(self, axis: str, graphs: int) -> None:
        """B and T are symbols to the fake kernels, which ask the compiled ones for sizes; units are numbers."""
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

        def f(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> Tensor:
            return ops.lstm_unroll(x, h0, c0, *weights)[0]

        compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=True)
        for i in range(3):
            B, T, H = (3 + i, 5 + 2 * i, 6) if axis == "batch" else (3, 5, 6 + min(i, 1))
            shapes = ((2, B, T, 4), (2, B, H), (2, B, H), (2, 4 * H, 4), (2, 4 * H, H), (2, 4 * H))
            arguments = [torch.randn(shape).requires_grad_() for shape in shapes]
            assert torch.equal(compiled(*arguments), f(*arguments))
        assert counter.frame_count == graphs

    @pytest.mark.parametrize("with_reset", [True, False])
    def test_lstm_unroll(self, with_reset: bool) -> None:
        torch._dynamo.reset()
        problem = draw(CASE)
        reset = problem.batch.reset if with_reset else None

        def f(*inputs: Tensor) -> Tensor:
            y, h, c = ops.lstm_unroll(inputs[0].tanh(), *inputs[1:], reset)
            return (y * y).sum() + h.sum() - 2 * c.sum()

        inputs = [problem.batch.features_online, problem.batch.h0, problem.batch.c0, *problem.online[:3]]
        results = []
        for g in (torch.compile(f, fullgraph=True, backend="aot_eager"), f):
            fresh = [v.clone().requires_grad_() for v in inputs]
            value = g(*fresh)
            results.append([value.detach(), *torch.autograd.grad(value, fresh)])
        for a, b in zip(*results, strict=True):
            assert deviation(a, b).scaled < 1e-6  # observed 0

    def test_lstm_step(self) -> None:
        torch._dynamo.reset()
        p = draw(CASE)
        handle = ops.pack(p.online)

        def f(x: Tensor, h: Tensor, c: Tensor, reset: Tensor) -> Tensor:
            for _ in range(2):
                h, c = ops.lstm_step(x, h, c, handle, reset=reset)
            return h + c

        args = (p.batch.features_online[:, :, 0], p.batch.h0, p.batch.c0, p.batch.reset[:, :, 0])
        assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*args), f(*args))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("D", "H", "F", "A"), [(3, 5, 7, 16), (16, 33, 16, 4), (17, 16, None, 15), (1, 1, 1, 1)])
def test_packed_networks_have_the_size_that_fake_kernels_say(
    D: int, H: int, F: int | None, A: int, dueling: bool, bf16: bool
) -> None:
    """Sizes on both sides of whole vectors: at A = 4, 15 and 16 the value's output takes a vector more on some CPU."""
    w = draw(Case(P=2, B=1, S=1, D=D, H=H, F=F, A=A, burn_in=0, dueling=dueling)).online
    meta = [None if v is None else v.to("meta") for v in w]
    assert torch.ops.townlet.pack(*meta, bf16).shape == torch.ops.townlet.pack(*w, bf16).shape
    layers = [torch.zeros(2, n, k) for n, k in ((H, D), (A, H), (D, A))]
    biases = [torch.zeros(w.shape[:2]) for w in layers]
    fake = torch.ops.townlet.pack_encoder([v.to("meta") for v in layers], [v.to("meta") for v in biases])
    assert fake.shape == torch.ops.townlet.pack_encoder(layers, biases).shape


def test_meta_tensors_give_shapes() -> None:
    """The fake kernels run on the meta device: shapes without memory."""
    seen = 0
    for name, func, args in CALLS:
        if name == "townlet::lstm_unroll.default":
            shapes = [v.shape for v in func(*args)]
            out = func(*(a.detach().to("meta") if isinstance(a, Tensor) else a for a in args))
            assert [v.shape for v in out] == shapes
            assert all(v.device.type == "meta" for v in out)
            seen += 1
    assert seen > 4
