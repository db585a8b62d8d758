"""Any space becomes rows and numbers: by hand, and for random spaces against Gymnasium's own flattening."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Text, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st

from townlet.envs.spaces import ActionNumbers, ObservationRows


def batched(space, samples):
    return concatenate(space, samples, create_empty_array(space, len(samples)))


def rows_of(space, samples):
    return ObservationRows(space, "w")(batched(space, samples), len(samples))


SHAPES = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int8, np.int16, np.int64, bool]))
    low, span = draw(st.integers(0, 5)), draw(st.integers(1, 250))
    if dtype in (np.int8, bool):
        low, span = 0, 1
    return Box(low, min(low + span, 255), draw(SHAPES), dtype)


LEAVES = st.one_of(
    boxes(),
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 6), st.integers(-3, 3)),
    st.builds(MultiBinary, st.integers(1, 4) | st.tuples(st.integers(1, 3), st.integers(1, 3))),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(MultiDiscrete),
    st.tuples(st.integers(1, 4), st.integers(1, 4)).map(
        lambda n: MultiDiscrete([[n[0], n[1]]] * 2, start=[[3, 0]] * 2)
    ),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(Dict)
        | st.lists(inner, min_size=1, max_size=3).map(Tuple)
    ),
    max_leaves=5,
)


def leaf(value, path):
    for key in path:
        value = value[key]
    return value


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(1, 4), st.integers(0, 2**31))
def test_rows_have_the_stated_parts(space, n, seed):
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    rows, values = ObservationRows(space), rows_of(space, samples)
    assert values.shape == (n, rows.size)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    ends = [p.start + p.size for p in rows.parts]
    assert [p.start for p in rows.parts] == [0, *ends[:-1]]  # they fill the row, in order
    assert ends[-1] == rows.size
    for part in rows.parts:
        here, given_values = values[:, part.slice], np.stack([leaf(s, part.path) for s in samples])
        if part.kind == "one-hot":
            digits = given_values.reshape(n, -1)
            assert np.array_equal(here.sum(axis=1), np.full(n, digits.shape[1]))
            assert set(np.unique(here)) <= {0, 1}
            nvec = np.atleast_1d(getattr(part.space, "nvec", None) if hasattr(part.space, "nvec") else part.space.n)
            blocks = np.split(here, np.cumsum(nvec.ravel())[:-1], axis=1)
            back = np.stack([b.argmax(axis=1) for b in blocks], axis=1) + np.ravel(part.space.start)
            assert np.array_equal(back, digits)
        elif part.scaled:
            assert here.min() >= 0
            assert here.max() <= 1
            low, high = part.space.low.astype(float), part.space.high.astype(float)
            back = here.reshape(given_values.shape) * np.maximum(high - low, 1) + low
            assert np.abs(back - given_values).max() < 1e-4 * 255  # seen: 8e-6
        else:
            assert np.array_equal(here, given_values.reshape(n, -1).astype(np.float32))
        assert part.kind == "image" or not (isinstance(part.space, Box) and len(part.space.shape) == 3)


@settings(max_examples=40, deadline=None)
@given(SPACES, st.integers(0, 2**31))
def test_one_row_is_gymnasiums_own_flattening(space, seed):
    space.seed(seed)
    sample = space.sample()
    own, mine = gymnasium.spaces.flatten(space, sample), rows_of(space, [sample])[0]
    plain = np.ones(len(mine), dtype=bool)
    for part in ObservationRows(space).parts:
        plain[part.slice] = not part.scaled
    assert np.array_equal(mine[plain], own.astype(np.float32)[plain])


@settings(max_examples=40, deadline=None)
@given(SPACES, st.integers(2, 5), st.integers(0, 2**31))
def test_a_batch_is_its_rows(space, n, seed):
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    assert np.array_equal(rows_of(space, samples), np.concatenate([rows_of(space, [s]) for s in samples]))


ACTION_SPACES = st.one_of(
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 9), st.integers(-3, 3)),
    st.integers(1, 6).map(MultiBinary),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(MultiDiscrete),
    st.integers(1, 3).map(lambda n: MultiDiscrete([[n, 2], [1, 3]], start=[[4, -1], [0, 7]])),
)


@settings(max_examples=60, deadline=None)
@given(ACTION_SPACES)
def test_every_action_has_one_number(space):
    numbers = ActionNumbers(space)
    actions = numbers(np.arange(numbers.n))
    assert len({np.asarray(a).tobytes() for a in actions}) == numbers.n  # no two alike
    assert all(space.contains(np.asarray(a, dtype=space.dtype)) or space.contains(a) for a in actions)
    lows = [tuple(np.ravel(a)) for a in actions]
    assert lows == sorted(lows)  # the last entry fastest
    if not isinstance(space, Discrete):
        entries = np.full(space.shape, 2) if isinstance(space, MultiBinary) else space.nvec
        offset = 0 if isinstance(space, MultiBinary) else space.start
        digits = (actions - offset).reshape(numbers.n, -1).T
        assert np.array_equal(np.ravel_multi_index(digits, entries.ravel()), np.arange(numbers.n))


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_a_nested_observation_by_hand():
    space = Dict({
        "camera": Box(0, 255, (2, 2, 1), np.uint8), "keys": MultiBinary(2),
        "pose": Tuple((Discrete(3), Box(-9, 9, ()))),
        "say": Text(5), "slots": MultiDiscrete([2, 3], start=[1, 0]), "symbols": Box(0, 10, (1, 1, 2), np.uint8),
    })  # fmt: skip
    rows = ObservationRows(space, "w")
    assert [(p.name, p.kind, p.space.shape, p.start, p.size, p.scaled) for p in rows.parts] == [
        ("observation['camera']", "image", (2, 2, 1), 0, 4, True),
        ("observation['keys']", "bits", (2,), 4, 2, False),
        ("observation['pose'][0]", "one-hot", (), 6, 3, False),
        ("observation['pose'][1]", "numbers", (), 9, 1, False),
        ("observation['slots']", "one-hot", (2,), 10, 5, False),
        ("observation['symbols']", "image", (1, 1, 2), 15, 2, False),
    ]
    assert rows.dropped == ["observation['say']"]
    sample = {
        "camera": np.array([0, 51, 102, 255], np.uint8).reshape(2, 2, 1), "keys": np.array([0, 1], np.int8),
        "pose": (np.int64(2), np.float32(-4.5)), "say": "hello", "slots": np.array([2, 0]),
        "symbols": np.array([[[10, 3]]], np.uint8),
    }  # fmt: skip
    expected = [0, 0.2, 0.4, 1, 0, 1, 0, 0, 1, -4.5, 0, 1, 1, 0, 0, 10, 3]
    assert rows_of(space, [sample, sample]) == pytest.approx(np.array([expected] * 2))


def test_what_is_scaled():
    def scaled(*box):
        return ObservationRows(Box(*box)).parts[0].scaled

    assert scaled(0, 255, (128,), np.uint8)
    assert scaled(0, 255, (4, 4, 3), np.int64)
    assert not scaled(0, 255, (4,), np.int64)  # numbers, not an image
    assert not scaled(0, 31, (7, 7, 3), np.uint8)  # symbols
    assert not scaled(0, 255, (4, 4, 3), np.float32)
    assert not scaled(-np.inf, np.inf, (4, 4, 3), np.int64)


def test_a_plain_batch_is_not_copied():
    rows, batch = ObservationRows(Box(-1, 1, (3, 2))), np.zeros((5, 3, 2), np.float32)
    assert np.shares_memory(rows(batch, 5), batch)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            Sequence(Discrete(2)),
            r"w: observation space Sequence\(.*\) is not supported; expected Box \(numbers\), Discr",
        ),
        (
            Dict({"net": Graph(Discrete(2), None)}),
            r"w: observation\['net'\] of observation space Graph\(.*not supported",
        ),
        (Box(0, 1, (2, 0)), r"observation space Box\(.*is not supported"),
        (Dict({"say": Text(5)}), r"w: observation space Dict\(.*\) holds no numbers; expected Box"),
        (Discrete(2_000_000), r"Discrete\(2000000\) takes 2,000,000 numbers; expected at most 1,000,000"),
    ],
)
def test_spaces_that_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        ObservationRows(space, "w")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(-1, 1, (2,)), r"^w: continuous action space Box\(.*\) is not supported; expected Discrete, MultiD"),
        (Dict({"a": Discrete(2)}), r"^w: action space Dict\(.*\) is not supported"),
        (MultiDiscrete([64, 65]), r"^w: action space MultiDiscrete\(\[64 65\]\) has 4,160 combinations; .* 4,096"),
        (MultiBinary(64), r"^w: action space MultiBinary\(64\) has 18,446,744,073,709,551,616 combinations"),
    ],
)
def test_actions_that_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        ActionNumbers(space, "w")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"a": np.zeros((2, 3))}, r"^observation\['b'\] is missing"),
        ({"a": np.zeros((2, 4)), "b": np.zeros(2, int)}, r"^observation\['a'\] has shape \[2, 4\]; expected \[2, 3\]"),
        (
            {"a": np.zeros((2, 3), "O"), "b": np.zeros(2, int)},
            r"^observation\['a'\] has dtype object; expected numbers",
        ),
        ({"a": np.zeros((2, 3)), "b": np.zeros(2)}, r"^observation\['b'\] has dtype float64; expected integers"),
        ({"a": np.zeros((2, 3)), "b": np.array([1, 4])}, r"^observation\['b'\] of environment 1 is 4; .*Discrete\(4\)"),
        ({"a": np.zeros((2, 3)), "b": np.array([-1, 0])}, r"^observation\['b'\] of environment 0 is -1"),
        (np.zeros((2, 3)), r"^observation\['a'\] is missing|observation\['a'\]"),
    ],
)
def test_batches_that_do_not_fit_name_the_part(batch, message):
    rows = ObservationRows(Dict({"a": Box(-1, 1, (3,)), "b": Discrete(4)}), "w")
    with pytest.raises(ValueError, match=message):
        rows(batch, 2)
