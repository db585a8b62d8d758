"""The Gymnasium face of the Town: spaces, seeds, autoreset, saved states, errors, registration."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from townlet import _C
from townlet.envs import TownArgs, TownEnv, TownVectorEnv

INTERACT, WAIT = 4, 5


def play(envs: TownVectorEnv, actions: np.ndarray) -> list[np.ndarray]:
    """Everything that the steps give, flattened into a list of arrays."""
    out: list[np.ndarray] = []
    for row in actions:
        *arrays, info = envs.step(row)
        out += [*arrays, info["legal"], info["survival_time"]]
    return out


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "args",
    [{}, {"level": "hamlet"}, {"partial": False}, {"temporal": False, "reward": "wellbeing", "random_start": True}],
)
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_check_env(args: dict, render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("townlet/Town-v0", render_mode=render_mode, **args)
        check_env(env.unwrapped, skip_render_check=render_mode is None)


def test_observation_sizes_and_layout() -> None:
    """The sizes that the documentation states, and the parts where `observation` says they are."""
    assert TownVectorEnv(2).single_observation_space.shape == (78,)
    assert TownVectorEnv(2, level="hamlet").single_observation_space.shape == (163,)
    assert TownVectorEnv(2, partial=False, size=9).single_observation_space.shape == (14 * 81 + 28,)
    for args in ({}, {"level": "hamlet"}, {"partial": False}, {"window": "kind", "radius": 3}):
        envs = TownVectorEnv(5, **args)
        obs, _info = envs.reset(seed=1)
        lay = TownArgs(**args).observation
        assert lay.size == obs.shape[1]
        assert lay.progress.stop == lay.size
        assert (obs[:, lay.underfoot].sum(1) == 1).all()
        assert (obs[:, lay.underfoot][:, -1] == 1).all()
        assert (obs[:, lay.meters] == np.float32([1, 1, 1, 0.2, 1, 1, 1, 1])).all()
        assert np.allclose((obs[:, lay.clock] ** 2).sum(1), 1.0, atol=1e-6)
        state = envs.get_state()
        assert np.allclose(obs[:, lay.position] * 7, np.stack([state["x"], state["y"]], 1), atol=1e-5)
        assert obs[:, lay.map].reshape(5, *lay.map_shape).shape == (5, *lay.map_shape)
        assert envs.observation_space.contains(obs)


def test_knots_hold_the_position() -> None:
    """One-hot where the grid has as many cells as there are knots; between two of them elsewhere."""
    for size, knots in ((8, 8), (5, 8), (9, 3)):
        envs = TownVectorEnv(200, size=size, knots=knots, level="hamlet")
        obs, _info = envs.reset(seed=1)
        lay, state = envs.args.observation, envs.get_state()
        weights = obs[:, lay.knots].reshape(200, 2, knots)
        assert np.allclose(weights.sum(2), 1.0)
        assert ((weights > 0).sum(2) <= 2).all()
        places = weights @ np.linspace(0, size - 1, knots)
        assert np.allclose(places, np.stack([state["x"], state["y"]], 1), atol=1e-5)
        assert (weights.max(2) == 1).all() == (size == knots)
        plain = TownVectorEnv(200, size=size, level="hamlet").reset(seed=1)[0]
        assert np.array_equal(np.delete(obs, np.arange(lay.knots.start, lay.knots.stop), axis=1), plain)


def test_map_planes_by_hand() -> None:
    """Agent at (0, 0) of the fixed town: Bed at (1, 1), LuxuryBed (2, 1), Shower (2, 2), nothing else within 2."""
    envs = TownVectorEnv(1, layout="fixed")
    envs.reset(seed=0)
    state = envs.get_state()
    state["x"][0] = state["y"][0] = 0
    envs.set_state(state)
    present, off_grid = envs.observe()[0][0, :50].reshape(2, 5, 5)
    assert np.argwhere(present).tolist() == [[3, 3], [3, 4], [4, 4]]  # (row, column), the agent at (2, 2)
    assert off_grid[:2].all()
    assert off_grid[:, :2].all()
    assert not off_grid[2:, 2:].any()

    kinds = TownVectorEnv(1, layout="fixed", window="kind")
    kinds.reset(seed=0)
    kinds.set_state(state)
    planes = kinds.observe()[0][0, kinds.args.observation.map].reshape(15, 5, 5)
    assert np.argwhere(planes[:14]).tolist() == [[0, 3, 3], [1, 3, 4], [2, 4, 4]]
    assert np.array_equal(planes[14], off_grid)

    whole = TownVectorEnv(1, layout="fixed", partial=False)
    whole.reset(seed=0)
    planes = whole.observe()[0][0, :896].reshape(14, 8, 8)
    assert [np.argwhere(p).tolist() for p in planes[[0, 8, 10]]] == [[[1, 1]], [[0, 7]], [[7, 0]]]


def test_an_environment_depends_on_its_seed_alone() -> None:
    """Environment i of many, another place among others, and one on its own: the same episodes, resets included."""
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 6, (400, 6))
    many = TownVectorEnv(6)
    many.reset(seed=10)
    together = play(many, actions)
    for i in (0, 3, 5):
        alone = TownVectorEnv(1)
        alone.reset(seed=10 + i)
        assert same(play(alone, actions[:, i : i + 1]), [a[i : i + 1] for a in together])
    order = [4, 1, 5, 0, 2, 3]
    shuffled = TownVectorEnv(6)
    shuffled.reset(seed=[10 + i for i in order])
    assert same(play(shuffled, actions[:, order]), [a[order] for a in together])
    other = TownVectorEnv(6)
    other.reset(seed=11)  # the control: other seeds, other worlds
    assert not same(play(other, actions), together)


def test_seeds_start_over_and_reset_goes_on() -> None:
    envs = TownVectorEnv(3)
    first = envs.reset(seed=5)[0]
    second = envs.reset()[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(envs.reset(seed=5)[0], first)
    assert np.array_equal(envs.reset()[0], second)
    assert not np.array_equal(TownVectorEnv(3).reset()[0], TownVectorEnv(3).reset()[0])  # entropy without a seed


def test_same_map_with_and_without_random_start() -> None:
    plain, random_start = TownVectorEnv(20), TownVectorEnv(20, random_start=True)
    plain.reset(seed=2)
    random_start.reset(seed=2)
    assert np.array_equal(plain.get_state()["cells"], random_start.get_state()["cells"])
    assert not np.array_equal(plain.get_state()["cents"], random_start.get_state()["cents"])


def test_next_step_autoreset() -> None:
    envs = TownVectorEnv(4, depletion=[1.0, 60.0, 60.0, 1.0], max_steps=50)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    over = np.zeros(4, bool)
    seen = 0
    for _ in range(200):
        before = envs.get_state()
        bad = np.where(over, 99, WAIT)  # ignored where an episode has ended: not even looked at
        obs, reward, terminated, truncated, info = envs.step(bad)
        assert (reward[over] == 0).all()
        assert not (terminated | truncated)[over].any()
        assert (info["survival_time"][over] == 0).all()
        assert (obs[over][:, envs.args.observation.meters] == np.float32([1, 1, 1, 0.2, 1, 1, 1, 1])).all()
        assert np.array_equal(envs.get_state()["episode"], before["episode"] + over)
        seen += int(over.sum())
        over = terminated | truncated
    assert seen > 20


def test_single_and_vector_environments_agree() -> None:
    single, vector = TownEnv(max_steps=60), TownVectorEnv(1, max_steps=60)
    obs, _info = single.reset(seed=9)
    assert np.array_equal(obs, vector.reset(seed=9)[0][0])
    rng = np.random.default_rng(1)
    episodes = 0
    for _ in range(300):
        action = int(rng.integers(6))
        o1, r1, d1, c1, i1 = single.step(action)
        o2, r2, d2, c2, i2 = vector.step(np.array([action]))
        assert np.array_equal(o1, o2[0])
        assert (r1, d1, c1) == (r2[0], d2[0], c2[0])
        assert np.array_equal(i1["legal"], i2["legal"][0])
        assert i1["survival_time"] == i2["survival_time"][0]
        if d1 or c1:
            with pytest.raises(gymnasium.error.ResetNeeded):
                single.step(0)
            assert np.array_equal(single.reset()[0], vector.step(np.array([0]))[0][0])
            episodes += 1
    assert episodes >= 4


@pytest.mark.parametrize("args", [{}, {"level": "hamlet", "depletion": 1.5, "random_start": True}])
def test_state_round_trip_is_bit_exact(args: dict) -> None:
    rng = np.random.default_rng(2)
    actions = rng.integers(0, 6, (500, 8))
    envs = TownVectorEnv(8, **args)
    envs.reset(seed=0)
    play(envs, actions[:150])
    state = pickle.loads(pickle.dumps(envs.get_state()))
    obs = envs.observe()
    after = play(envs, actions[150:])  # several episodes further
    assert envs.get_state()["episode"].min() > 2
    other = TownVectorEnv(8, **args)
    other.set_state(state)
    assert same(list(obs), list(other.observe()))
    assert same(after, play(other, actions[150:]))
    for name, value in envs.get_state().items():
        assert np.array_equal(value, other.get_state()[name]), name
    # A saved state is a copy: the run after it has not changed it, and every part of it matters.
    for name in set(state) - {"version", "survival"}:
        changed = copy.deepcopy(state)
        changed[name] = np.roll(changed[name], 1, axis=0 if name == "cells" else -1)
        other.set_state(changed)
        if not np.array_equal(changed[name], state[name]):
            assert not same(after, play(other, actions[150:])), name


def test_single_environment_state_round_trip() -> None:
    one, other = TownEnv(max_steps=20), TownEnv(max_steps=20)
    one.reset(seed=3)
    for action in (0, 1, 4, 3):
        one.step(action)
    other.set_state(one.get_state())
    for mine, its in zip(one.observe(), other.observe(), strict=True):
        assert np.array_equal(mine, its)
    for _ in range(16):
        a, b = one.step(WAIT), other.step(WAIT)
        assert np.array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
    assert a[3]
    fresh = TownEnv(max_steps=20)
    fresh.set_state(one.get_state())  # saved at the end of an episode: reset comes first
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(WAIT)
    assert np.array_equal(fresh.reset()[0], one.reset()[0])


def test_reset_mask() -> None:
    envs = TownVectorEnv(3)
    envs.reset(seed=0)
    envs.step(np.full(3, WAIT))
    _, info = envs.reset(options={"reset_mask": np.array([True, False, True])})
    assert info["survival_time"].tolist() == [0, 1, 0]


def test_returned_arrays_are_the_callers_unless_asked_otherwise() -> None:
    envs = TownVectorEnv(2)
    envs.reset(seed=0)
    first = envs.step([WAIT, WAIT])
    kept = [np.array(a) for a in first[:4]] + [first[4]["legal"].copy()]
    envs.step([0, 1])
    assert same(kept, [*first[:4], first[4]["legal"]])
    shared = TownVectorEnv(2, copy=False)
    shared.reset(seed=0)
    assert shared.step([WAIT, WAIT])[0] is shared.step([0, 1])[0]


def test_make_vec_uses_the_vector_simulator() -> None:
    envs = gymnasium.make_vec("townlet/Town-v0", num_envs=3, vectorization_mode="vector_entry_point", size=6)
    assert isinstance(envs.unwrapped, TownVectorEnv)
    assert envs.num_envs == 3
    assert envs.reset(seed=1)[0].shape == (3, 78)


BAD_ARGUMENTS = [
    ("level", {"level": "city"}),
    ("size", {"size": 3}),
    ("size", {"size": 7, "layout": "fixed"}),
    ("size", {"size": 8.0}),
    ("size", {"size": 1, "level": "hamlet"}),
    ("size", {"size": 300}),
    ("layout", {"layout": 1}),
    ("max_steps", {"max_steps": 0}),
    ("start_money", {"start_money": 1.5}),
    ("start_money", {"start_money": "much"}),
    ("start_money", {"start_money": float("nan")}),
    ("depletion", {"depletion": -1.0}),
    ("depletion", {"depletion": float("nan")}),
    ("depletion", {"depletion": [1.0, 2.0, 3.0]}),
    ("depletion", {"depletion": "fast"}),
    ("temporal", {"temporal": 1}),
    ("partial", {"partial": None}),
    ("random_start", {"random_start": "no"}),
    ("knots", {"knots": 1}),
    ("knots", {"knots": -8}),
    ("knots", {"knots": 8.0}),
    ("random_start", {"random_start": 1.5}),
    ("random_start", {"random_start": float("nan")}),
    ("random_start_hour", {"random_start_hour": 7}),
    ("window", {"window": "wide"}),
    ("radius", {"radius": 0}),
    ("radius", {"radius": True}),
    ("reward", {"reward": "money"}),
    ("render_mode", {"render_mode": "human"}),
    ("copy", {"copy": 2}),
]


@pytest.mark.parametrize(("name", "args"), BAD_ARGUMENTS, ids=[str(a) for _, a in BAD_ARGUMENTS])
def test_bad_arguments_name_themselves(name: str, args: dict) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected "):
        TownVectorEnv(2, **args)


def test_bad_num_envs_seeds_actions_and_options() -> None:
    with pytest.raises(ValueError, match=r"^num_envs is 0; expected an integer in 1\.\."):
        TownVectorEnv(0)
    with pytest.raises(TypeError, match="colour"):
        TownVectorEnv(1, colour="red")
    envs = TownVectorEnv(2)
    for call in (lambda: envs.step([0, 0]), envs.get_state):
        with pytest.raises(gymnasium.error.ResetNeeded):
            call()
    for seed in (-1, 2**64 - 1, [1], [1, 2, 3], [1, -2], "12", 1.5, True):
        with pytest.raises(ValueError, match=r"^seed(\[\d\])? (is|holds) .*; expected"):
            envs.reset(seed=seed)
    with pytest.raises(ValueError, match=r"^options holds \['speed'\]; expected no key but"):
        envs.reset(options={"speed": 2})
    with pytest.raises(
        ValueError, match=r"^options\['reset_mask'\] is int64 of shape \[2\]; expected bool of shape \[2\]"
    ):
        envs.reset(options={"reset_mask": np.array([1, 0])})
    with pytest.raises(ValueError, match=r"^options\['reset_mask'\] is given .*; expected a running"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    before = envs.get_state()
    for actions in ([0], [[0, 0]], [0.0, 1.0], None):
        with pytest.raises(ValueError, match=r"^actions is .* of shape .*; expected integers of shape \[2\]"):
            envs.step(actions)
    for actions in ([0, 6], [WAIT, -1]):
        with pytest.raises(ValueError, match=r"^actions\[1\] is (6|-1); expected 0\.\.5"):
            envs.step(actions)
    after = envs.get_state()
    assert all(np.array_equal(before[k], after[k]) for k in before)  # nobody moved
    single = TownEnv()
    single.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action has shape \[2\]; expected one integer"):
        single.step([0, 1])
    with pytest.raises(ValueError, match=r"^options holds \['a'\]; expected none"):
        single.reset(options={"a": 1})


def test_bad_states_are_refused_and_change_nothing() -> None:
    envs = TownVectorEnv(2)
    envs.reset(seed=0)
    good = envs.get_state()

    def broken(**changes: object) -> dict:
        return {k: v for k, v in (good | changes).items() if v is not None}

    one_cell = good["cells"].copy()
    one_cell[0, 1] = one_cell[0, 0]
    cases = [
        (broken(version=None), "^state holds no 'version'; expected"),
        (broken(version=np.array([99])), r"^state\['version'\] is \[99\]; expected 1"),
        (broken(x=None), "^state holds no 'x'; expected"),
        (
            broken(x=good["x"].astype(np.int64)),
            r"^state\['x'\] is an array of dtype int64; expected a C-contiguous array of dtype int32",
        ),
        (broken(x=good["x"] + 8), r"^state\['x'\] holds \d+; expected numbers in 0\.\.7"),
        (broken(meters=good["meters"] * np.nan), r"^state\['meters'\] holds -?nan; expected numbers in"),
        (broken(cells=one_cell), r"^state\['cells'\] has two buildings on one cell; expected"),
        (broken(hour=good["hour"][:1].copy()), r"^state\['hour'\] holds 1 numbers; expected 2"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            envs.set_state(state)
    hamlet = TownVectorEnv(2, level="hamlet")
    hamlet.reset(seed=0)
    with pytest.raises(ValueError, match=r"^state\['cells'\] holds .*another num_envs or level"):
        envs.set_state(hamlet.get_state())
    assert all(np.array_equal(good[k], v) for k, v in envs.get_state().items())


def test_the_raw_simulator_checks_what_memory_safety_needs() -> None:
    town = TownArgs().simulator(2)
    obs, flags = np.empty((2, 78), np.float32), np.empty(2, bool)
    rest = (np.empty(2), flags, flags.copy(), np.empty((2, 6), bool), np.empty(2, np.int32))
    with pytest.raises(ValueError, match=r"^obs has shape \[2, 77\]; expected \[2, 78\]"):
        town.step(np.zeros(2, np.int64), np.empty((2, 77), np.float32), *rest)
    with pytest.raises(ValueError, match=r"^actions has shape \[3\]; expected \[2\]"):
        town.step(np.zeros(3, np.int64), obs, *rest)
    with pytest.raises(TypeError):
        town.step(np.zeros(2, np.int64), obs.astype(np.float64), *rest)  # would be a copy that nobody reads
    with pytest.raises(ValueError, match=r"^keys has length 1; expected 2"):
        town.seed([1])
    with pytest.raises(ValueError, match=r"^mask has shape \[3\]; expected \[2\]"):
        town.reset(np.ones(3, bool))


# --- registration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "known"),
    [
        ("import gymnasium, townlet.envs", True),
        ("import townlet.envs, gymnasium", True),
        ("import gymnasium; from townlet import TownVectorEnv", True),
        ("import gymnasium; from townlet import Config", False),  # settings do without the environments
        ("import gymnasium, townlet", False),  # the control
    ],
)
def test_the_town_is_registered_with_the_first_use_of_the_environments(order: str, known: bool) -> None:
    lines = (order, "print('townlet/Town-v0' in gymnasium.registry)")
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(known)]


# --- random numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # the known-answer vectors that the authors of Philox publish with Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: int, want: tuple) -> None:
    assert _C.philox_block(*counter, key) == want


def test_philox_uniform_is_a_function_of_key_stream_counter_and_index() -> None:
    keys = np.array([0, 7, 2**63 + 1], np.uint64)
    draws = _C.philox_uniform(keys, 1, 2**40 + 3, 7)
    assert draws.shape == (3, 7)
    assert draws.dtype == np.float64
    assert np.array_equal(_C.philox_uniform(keys[1:2], 1, 2**40 + 3, 4), draws[1:2, :4])
    for stream, counter in ((2, 2**40 + 3), (1, 2**40 + 4), (1, 3)):
        assert not np.isin(_C.philox_uniform(keys, stream, counter, 7), draws).any()
    words = _C.philox_block(1, 1, 3, 2**8, 7)  # draws 2 and 3: block 1, stream 1, counter 2^40 + 3
    assert draws[1, 2] == ((words[1] << 32 | words[0]) >> 11) / 2**53
    assert draws[1, 3] == ((words[3] << 32 | words[2]) >> 11) / 2**53
    assert _C.philox_uniform(keys, 0, 0, 0).shape == (3, 0)
    many = _C.philox_uniform(np.arange(100, dtype=np.uint64), 0, 0, 1000)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.005)  # standard error 0.0009
    assert np.corrcoef(many[:, 0::2].reshape(-1), many[:, 1::2].reshape(-1))[0, 1] == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match=r"^n is -1; expected 0\.\."):
        _C.philox_uniform(keys, 0, 0, -1)
    with pytest.raises(ValueError, match=r"^keys has 2 dimensions; expected"):
        _C.philox_uniform(keys.reshape(1, 3), 0, 0, 1)


def test_build_info() -> None:
    info = _C.build_info()
    assert info["compiler"] in ("gcc", "clang")
    assert info["cxx_standard"] >= 202002
    assert info["compiler_version"]
