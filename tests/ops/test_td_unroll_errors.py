"""Bad arguments of `td_unroll`: a ValueError that names the argument, what came and what was expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import GARBAGE_ACTION, Case, Problem, TDUnroll, draw, leaves, valid, wrong_shapes

from townlet import ops, reference
from townlet.ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

CASE = Case(P=2, B=3, S=5, D=4, H=6, F=7, A=3)
BOTH = pytest.mark.parametrize("td_unroll", [ops.td_unroll, reference.td_unroll], ids=["ops", "twin"])

# argument: the shape its error must name (CASE's sizes)
WEIGHTS = {
    "w_hh": "[2, 24, 6]",
    "bias": "[2, 24]",
    "w_fc": "[2, ",  # F and A are what these two say
    "b_fc": "[2, 7]",
    "w_adv": "[2, ",
    "b_adv": "[2, 3]",
    "w_val": "[2, 1, 7]",
    "b_val": "[2, 1]",
}
FIELDS = {
    "features_target": "[2, 3, 6, 4]",
    "h0": "[2, 3, 6]",
    "c0": "[2, 3, 6]",
    "action": "[2, 3, 5]",
    "reward": "[2, 3, 5]",
    "terminated": "[2, 3, 5]",
    "reset": "[2, 3, 6]",
    "mask": "[2, 3, 5]",
    "weight": "[2, 3]",
    "legal": "[2, 3, 6, 3]",
}


def refuse(td_unroll: TDUnroll, problem: Problem, *words: str) -> None:
    """The call raises ValueError with all the words in its message."""
    with pytest.raises(ValueError) as caught:
        td_unroll(*problem)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@BOTH
@pytest.mark.parametrize("side", ["online", "target"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_shapes(td_unroll: TDUnroll, side: str, name: str) -> None:
    problem = draw(CASE)
    params: RecurrentQParams = getattr(problem, side)
    for i, bad in enumerate(wrong_shapes(getattr(params, name))):
        if (name, i) in (("w_fc", 1), ("w_adv", 1)):
            continue  # another F or A is legitimate by itself; its partners do not fit then
        broken = problem._replace(**{side: params._replace(**{name: bad})})
        refuse(td_unroll, broken, f"{side}.{name}", str(list(bad.shape)), "expected", WEIGHTS[name])


@BOTH
@pytest.mark.parametrize("side", ["online", "target"])
def test_partners_that_do_not_fit(td_unroll: TDUnroll, side: str) -> None:
    """Another F in w_fc alone, another A in w_adv alone."""
    problem = draw(CASE)
    params: RecurrentQParams = getattr(problem, side)
    for name, partner in (("w_fc", "b_fc"), ("w_adv", "b_adv")):
        wide = getattr(params, name).repeat_interleave(2, 1)
        broken = problem._replace(**{side: params._replace(**{name: wide})})
        refuse(td_unroll, broken, f"{side}.{partner}", "expected")


@BOTH
@pytest.mark.parametrize("bad", [torch.zeros(2, 23, 4), torch.zeros(24, 4), torch.zeros(2, 24, 0), None])
def test_w_ih_shape(td_unroll: TDUnroll, bad: Any) -> None:
    problem = draw(CASE)
    got = "NoneType" if bad is None else str(list(bad.shape))
    refuse(td_unroll, problem._replace(online=problem.online._replace(w_ih=bad)), "online.w_ih", got, "[P, 4H, D]")


@BOTH
@pytest.mark.parametrize("name", ["w_fc", "b_fc", "w_val", "b_val"])
def test_half_a_pair(td_unroll: TDUnroll, name: str) -> None:
    problem = draw(CASE)
    pair = ("w_fc", "b_fc") if "fc" in name else ("w_val", "b_val")
    for side in ("online", "target"):
        broken = problem._replace(**{side: getattr(problem, side)._replace(**{name: None})})
        came = "is None; expected a tensor" if name == pair[1] else "is a tensor; expected None"
        refuse(td_unroll, broken, f"{side}.{pair[1]} {came}, as {side}.{pair[0]} is")


@BOTH
@pytest.mark.parametrize("name", ["w_hh", "bias", "w_adv", "b_adv"])
def test_missing_weight(td_unroll: TDUnroll, name: str) -> None:
    problem = draw(CASE)
    refuse(td_unroll, problem._replace(online=problem.online._replace(**{name: None})), f"online.{name}", "NoneType")


@BOTH
@pytest.mark.parametrize("name", FIELDS)
def test_batch_shapes(td_unroll: TDUnroll, name: str) -> None:
    problem = draw(CASE)
    for bad in wrong_shapes(getattr(problem.batch, name)):
        refuse(td_unroll, problem.with_batch(**{name: bad}), f"batch.{name}", str(list(bad.shape)), FIELDS[name])


@BOTH
def test_features_online(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    x = problem.batch.features_online
    for bad in (x[0], x.repeat(2, 1, 1, 1), x.repeat(1, 1, 1, 2), x[:, :0], x[:, :, :1]):
        refuse(td_unroll, problem.with_batch(features_online=bad), "features_online", str(list(bad.shape)), "expected")


@BOTH
@pytest.mark.parametrize("name", SequenceBatch._fields)
def test_batch_types(td_unroll: TDUnroll, name: str) -> None:
    """No silent cast: int32 actions, 0/1 masks and half floats are refused."""
    problem = draw(CASE)
    v = getattr(problem.batch, name)
    wrong = torch.uint8 if v.dtype == torch.bool else torch.int32 if v.dtype == torch.int64 else torch.float16
    kind = str(wrong).removeprefix("torch.")
    refuse(td_unroll, problem.with_batch(**{name: v.to(wrong)}), f"batch.{name}", kind, "expected")
    if v.is_floating_point():
        refuse(td_unroll, problem.with_batch(**{name: v.double()}), f"batch.{name}", "float64", "float32")
    if name not in ("features_target", "legal"):
        refuse(td_unroll, problem.with_batch(**{name: None}), f"batch.{name}", "NoneType")


@BOTH
def test_weight_types(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    for name in WEIGHTS:
        params = problem.online._replace(**{name: getattr(problem.online, name).double()})
        refuse(td_unroll, problem._replace(online=params), f"online.{name}", "float64", "float32")
    params = problem.online._replace(w_ih=problem.online.w_ih.half())
    refuse(td_unroll, problem._replace(online=params), "online.w_ih", "float16", "float32")
    double = problem.to(torch.float64)
    refuse(td_unroll, problem._replace(target=double.target), "target", "float64", "float32")


@BOTH
def test_target_of_another_kind(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    for other in (replace(CASE, H=5), replace(CASE, P=3), replace(CASE, A=4), replace(CASE, F=8), replace(CASE, D=5)):
        refuse(td_unroll, problem._replace(target=draw(other).target), "target has")
    assert problem.target is not None
    refuse(td_unroll, problem._replace(target=problem.target._replace(w_val=None, b_val=None)), "target.w_val")
    square = draw(replace(CASE, F=6))
    assert square.target is not None
    refuse(td_unroll, square._replace(target=square.target._replace(w_fc=None, b_fc=None)), "target.w_fc")


@BOTH
def test_features_target_and_target_come_together(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    refuse(td_unroll, problem.with_batch(features_target=None), "batch.features_target", "NoneType")
    refuse(td_unroll, problem._replace(target=None), "batch.features_target", "target is None")


@BOTH
def test_burn_in(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    for burn_in in (5, 6, 100):
        refuse(td_unroll, problem.with_spec(burn_in=burn_in), "burn_in", str(burn_in), "S = 5")
    td_unroll(*problem.with_spec(burn_in=4))


@BOTH
def test_gamma_shape(td_unroll: TDUnroll) -> None:
    problem = draw(CASE)
    for n in (1, 3):
        refuse(td_unroll, problem.with_spec(gamma=torch.full((n,), 0.9)), "gamma", f"[{n}]", "[2]")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("gamma", [-0.1, 1.1, float("nan"), torch.tensor(0.9), torch.tensor([0.5, 1.5]), torch.tensor([float("nan")])]),
        ("n_step", [0, -1, 1.5]),
        ("burn_in", [-1, 0.5]),
        ("rescale_eps", [-1e-3, float("inf"), float("nan")]),
        ("loss", ["l1", "smooth_l1", ""]),
        ("huber_delta", [0.0, -1.0, float("inf"), float("nan")]),
        ("eta", [-0.1, 1.1, float("nan")]),
        ("compute_dtype", [torch.float16, torch.float64]),
        ("backend", ["cuda", ""]),
    ],
)
def test_spec(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{field}.*expected"):
            TDSpec(**{field: value})


def test_spec_limits_are_allowed() -> None:
    """Control: the ends of every range."""
    TDSpec(gamma=0.0, n_step=1, burn_in=0, rescale_eps=0.0, eta=0.0)
    TDSpec(gamma=1.0, n_step=10**9, eta=1.0, huber_delta=1e-9, compute_dtype=torch.bfloat16)
    TDSpec(gamma=torch.tensor([0.0, 1.0]))


class TestActions:
    """Out of range: an error where it would be used, nothing where the transition is not valid."""

    @BOTH
    @pytest.mark.parametrize("action", [-1, 3, GARBAGE_ACTION, -GARBAGE_ACTION])
    def test_at_a_valid_position(self, td_unroll: TDUnroll, action: int) -> None:
        problem = draw(replace(CASE, burn_in=2))
        positions = valid(problem.batch).nonzero()
        for p, b, t in (positions[0], positions[-1]):  # in burn-in and after it
            bad = problem.batch.action.clone()
            bad[p, b, t] = action
            where = f"batch.action is {action} at [{p}, {b}, {t}]"
            refuse(td_unroll, problem.with_batch(action=bad), where, "expected 0 <= action < A = 3")

    @BOTH
    def test_where_not_valid(self, td_unroll: TDUnroll) -> None:
        """Masked, or followed by another episode without having terminated."""
        problem = draw(replace(CASE, B=9))
        ok = valid(problem.batch)
        assert bool((problem.batch.mask & ~ok).any())
        assert bool((problem.batch.action[~ok].abs() > 0).all())
        assert bool(td_unroll(*problem).loss.isfinite().all())

    def test_by_every_way_to_the_operator(self) -> None:
        """With gradients to give, into buffers, in a compiled graph: the same ValueError."""
        problem = draw(CASE)
        bad = leaves(problem.with_batch(action=torch.full_like(problem.batch.action, 7)))
        torch._dynamo.reset()
        compiled = torch.compile(ops.td_unroll, fullgraph=True, backend="aot_eager")

        def into(*arguments: Any) -> TDOutput:
            grads = (None if v is None else torch.empty_like(v, requires_grad=False) for v in bad.online)
            return ops.td_unroll(*arguments, grads=RecurrentQParams(*grads))

        p, b, t = valid(problem.batch).nonzero()[0].tolist()
        for way in (ops.td_unroll, into, compiled):
            refuse(way, bad, f"batch.action is 7 at [{p}, {b}, {t}]")

    def test_an_error_leaves_the_next_call_alone(self) -> None:
        problem = draw(CASE)
        want = ops.td_unroll(*problem)
        refuse(ops.td_unroll, problem.with_batch(action=torch.full_like(problem.batch.action, 7)), "batch.action")
        for a, b in zip(ops.td_unroll(*problem), want, strict=True):
            assert torch.equal(a, b)
