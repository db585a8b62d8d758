"""The simulator against its plain-Python oracle, then hand-computed cases rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
from town_oracle import BUILDINGS as TABLE
from town_oracle import OracleTown

from townlet.envs import BUILDINGS, TownVectorEnv

UP, DOWN, LEFT, RIGHT, INTERACT, WAIT = range(6)
KIND = {b["name"]: i for i, b in enumerate(BUILDINGS)}
METER = {name: i for i, name in enumerate(["energy", "hygiene", "satiation", "mood", "social", "health", "fitness"])}

COMBINATIONS = [
    {},
    {"level": "hamlet"},
    {"level": "hamlet", "depletion": 1.5, "random_start": True, "reward": "wellbeing"},
    {"layout": "fixed", "random_start_hour": False, "start_money": 1.0},
    {"level": "hamlet", "layout": "fixed", "size": 9, "window": "presence", "radius": 3},
    {"window": "kind", "radius": 1, "depletion": 2.0, "start_money": 0.5},
    {"partial": False, "reward": "wellbeing", "max_steps": 37},
    {"level": "hamlet", "size": 2, "partial": False, "depletion": 0.7},
    {"size": 4, "radius": 4, "random_start": True, "depletion": 0.3},
    {"level": "hamlet", "depletion": 2.0, "random_start": 0.4, "start_money": 0.02, "knots": 8},
    {"size": 5, "knots": 9, "level": "hamlet"},
    {"temporal": False, "start_money": 0.8},
    {"temporal": False, "level": "hamlet", "depletion": 3.0, "start_money": 0.0},
    {"size": 13, "window": "kind", "depletion": 0.0, "max_steps": 60},
]


def biased_actions(rng: np.random.Generator, legal: np.ndarray) -> np.ndarray:
    """All six actions, illegal ones too; mostly interacting where that is possible, so that buildings get used."""
    actions = rng.integers(0, 6, len(legal))
    use = legal[:, INTERACT] & (rng.random(len(legal)) < 0.75)
    return np.where(use, INTERACT, actions)


@pytest.mark.parametrize("args", COMBINATIONS, ids=[" ".join(f"{k}={v}" for k, v in c.items()) for c in COMBINATIONS])
def test_simulator_equals_the_oracle(args: dict) -> None:
    """Observations to float32 rounding, everything else exactly, over several thousand random steps."""
    seeds = [0, 1, 2**40 + 5, 2**64 - 1]
    envs = TownVectorEnv(len(seeds), **args)
    oracles = [OracleTown(seed, **args) for seed in seeds]
    obs, info = envs.reset(seed=seeds)
    for i, oracle in enumerate(oracles):
        want, legal = oracle.reset()
        np.testing.assert_array_equal(obs[i], np.array(want, np.float32))
        assert info["legal"][i].tolist() == legal
        assert info["survival_time"][i] == 0
    rng = np.random.default_rng(3)
    episodes = paid = 0
    for _ in range(700):
        actions = biased_actions(rng, info["legal"])
        obs, reward, terminated, truncated, info = envs.step(actions)
        for i, oracle in enumerate(oracles):
            want, r, dead, capped, legal, survival = oracle.step(int(actions[i]))
            # The same float64 operations in the same order: equal after rounding to float32, with no tolerance.
            # (effects are given in another order than in the C++ loop, but to different meters)
            np.testing.assert_array_equal(obs[i], np.array(want, np.float32))
            assert reward[i] == r
            assert (terminated[i], truncated[i]) == (dead, capped)
            assert info["legal"][i].tolist() == legal
            assert info["survival_time"][i] == survival
            paid += oracle.progress > 0
        episodes += int((terminated | truncated).sum())
    assert episodes >= 4 or args.get("depletion") == 0.3  # the walk is no test of what it never meets
    assert paid > 20 or not args.get("temporal", True)


def test_package_table_is_the_documented_table() -> None:
    for building in BUILDINGS:
        row = TABLE[building["name"]]
        assert building["cell"] == row["cell"]
        assert building["ticks"] == row["ticks"]
        assert building["price"] == row["price"]
        assert building["hours"] == (row["hours"] or (0, 24))
        for key, effects in (("tick", row["tick"]), ("complete", row["done"])):
            want = dict.fromkeys(METER, 0.0) | {k: v for k, v in effects.items() if k != "money"}
            assert building[key] == want | {"cents": round(100 * effects.get("money", 0.0))}


class World:
    """One fixed-layout town that a test can put into any state and look into."""

    def __init__(self, **args) -> None:
        self.envs = TownVectorEnv(1, **({"layout": "fixed", "random_start_hour": False, "start_money": 0.2} | args))
        self.envs.reset(seed=0)

    def put(self, cell: tuple[int, int] = (4, 4), **values) -> World:
        state = self.envs.get_state()
        state["x"][0], state["y"][0] = cell
        for name, value in values.items():
            if name in METER:
                state["meters"][METER[name], 0] = value
            else:
                state[name][0] = value
        self.envs.set_state(state)
        return self

    def on(self, building: str, **values) -> World:
        return self.put(TABLE[building]["cell"], **values)

    def do(self, *actions: int) -> World:
        for action in actions:
            self.obs, self.reward, self.terminated, self.truncated, self.info = self.envs.step(np.array([action]))
        return self

    def __getitem__(self, name: str) -> float:
        state = self.envs.get_state()
        return state["meters"][METER[name], 0] if name in METER else state[name][0]


def test_one_idle_tick_by_hand() -> None:
    w = World().put().do(WAIT)
    assert w["energy"] == pytest.approx(0.995, abs=1e-12)
    assert w["hygiene"] == pytest.approx(0.997, abs=1e-12)
    assert w["satiation"] == pytest.approx(0.996, abs=1e-12)
    assert w["mood"] == pytest.approx(0.999, abs=1e-12)
    assert w["social"] == pytest.approx(0.994, abs=1e-12)
    assert w["fitness"] == pytest.approx(0.998, abs=1e-12)
    assert w["health"] == pytest.approx(0.9995, abs=1e-12)  # 0.001 * 0.5 at full fitness
    assert w["cents"] == 2000
    assert w["hour"] == 1


def test_moving_costs_more_and_a_blocked_move_does_not() -> None:
    moved = World().put((0, 0)).do(RIGHT)
    assert (moved["x"], moved["y"]) == (1, 0)
    assert [moved[m] for m in ("energy", "hygiene", "satiation")] == pytest.approx([0.99, 0.994, 0.992], abs=1e-12)
    assert moved["mood"] == pytest.approx(0.999, abs=1e-12)
    for action in (UP, LEFT):
        blocked = World().put((0, 0)).do(action)
        assert (blocked["x"], blocked["y"], blocked["energy"]) == (0, 0, World().put((0, 0)).do(WAIT)["energy"])


def test_y_grows_downwards() -> None:
    assert World().put((3, 3)).do(DOWN)["y"] == 4
    assert World().put((3, 3)).do(UP)["y"] == 2
    assert World().put((3, 3)).do(LEFT)["x"] == 2


def test_depletion_scales_losses_and_cascades_but_not_effects() -> None:
    w = World(depletion=2.0).put(satiation=0.1).do(WAIT)
    assert w["satiation"] == pytest.approx(0.092, abs=1e-12)
    shortage = (0.3 - 0.092) / 0.3
    assert w["health"] == pytest.approx(1 - 0.001 - 2 * 0.004 * shortage, abs=1e-12)
    assert w["energy"] == pytest.approx(1 - 0.01 - 2 * 0.005 * shortage, abs=1e-12)
    asleep = World(depletion=2.0).on("Bed", energy=0.5).do(INTERACT)
    assert asleep["energy"] == pytest.approx(0.5 + 0.075 - 0.01, abs=1e-12)


def test_depletion_per_environment_and_its_setter() -> None:
    envs = TownVectorEnv(3, depletion=[0.0, 1.0, 2.0])
    envs.reset(seed=0)
    envs.step(np.full(3, WAIT))
    assert envs.get_state()["meters"][0] == pytest.approx([1.0, 0.995, 0.99], abs=1e-12)
    envs.set_depletion([2.0, 0.0, 0.0])
    envs.step(np.full(3, WAIT))
    assert envs.get_state()["meters"][0] == pytest.approx([0.99, 0.995, 0.99], abs=1e-12)


def test_cascades_are_in_place_and_in_order() -> None:
    """Hygiene drags satiation and mood below the threshold only after these had their turn on energy and health."""
    w = World().put(hygiene=0.0, satiation=0.3045, mood=0.303, social=1.0).do(WAIT)
    # Satiation .3005 and mood .302 after the passive loss: above 0.3, so energy sees neither, only weak hygiene.
    assert w["energy"] == pytest.approx(1 - 0.005 - 0.0005, abs=1e-12)
    assert w["satiation"] == pytest.approx(0.3005 - 0.002, abs=1e-12)  # now below 0.3, too late for this tick
    assert w["mood"] == pytest.approx(0.302 - 0.003, abs=1e-12)
    assert w["health"] == pytest.approx(1 - 0.0005 - 0.0005, abs=1e-12)
    assert w["fitness"] == pytest.approx(0.998 - 0.002, abs=1e-12)


def test_a_source_below_zero_counts_as_zero() -> None:
    w = World().put(satiation=0.001).do(WAIT)  # -0.003 before the clamp
    assert w["satiation"] == 0.0
    assert w["health"] == pytest.approx(1 - 0.0005 - 0.004, abs=1e-12)


def test_health_loss_uses_fitness_before_this_ticks_loss() -> None:
    w = World().put(fitness=0.0).do(WAIT)
    assert w["health"] == pytest.approx(1 - 0.003, abs=1e-12)
    w = World().put(fitness=0.5).do(WAIT)
    assert w["health"] == pytest.approx(1 - 0.00175, abs=1e-12)


def test_hamlet_meters_stand_still() -> None:
    w = World(level="hamlet").put().do(RIGHT, WAIT, DOWN)
    assert [w[m] for m in ("hygiene", "mood", "social", "fitness")] == [1.0] * 4
    assert w["energy"] == pytest.approx(1 - 0.025, abs=1e-12)


def test_last_dollar_can_be_spent() -> None:
    """Prices are exact in cents: $5 buys all of a night, $4.99 four ticks of it."""
    w = World().on("Bed", cents=500, energy=0.2).do(*[INTERACT] * 5)
    assert w["cents"] == 0
    assert w["progress"] == 0
    assert w["energy"] == pytest.approx(0.2 + 0.375 + 0.125 - 0.025, abs=1e-12)
    short = World().on("Bed", cents=499, energy=0.2).do(*[INTERACT] * 5)
    assert short["cents"] == 99
    assert short["progress"] == 4
    assert short["energy"] == pytest.approx(0.2 + 0.3 - 0.025, abs=1e-12)


def test_unaffordable_interaction_is_a_wait_that_is_legal() -> None:
    w = World().on("LuxuryBed", cents=219, energy=0.5).do(INTERACT)
    assert w["cents"] == 219
    assert w["progress"] == 0
    assert w["energy"] == pytest.approx(0.495, abs=1e-12)
    assert w.info["legal"][0].tolist() == [True] * 6


def test_money_is_capped_at_a_hundred_dollars() -> None:
    w = World().on("Job", cents=9900, hour=8).do(INTERACT)
    assert w["cents"] == 10000


def test_progress_is_kept_by_waits_and_closing_and_lost_by_leaving() -> None:
    w = World().on("Shower", hygiene=0.2).do(INTERACT, WAIT, WAIT)
    assert w["progress"] == 1
    assert w.obs[0, -1] == np.float32(1 / 3)
    w.do(INTERACT, INTERACT)
    assert w["progress"] == 0
    assert w["hygiene"] == pytest.approx(0.2 + 0.4 - 5 * 0.003, abs=1e-12)

    w = World().on("Job", hour=16).do(INTERACT, INTERACT)  # 16 and 17 h; then it is 18 h and closed
    assert w["hour"] == 18
    assert w["progress"] == 2
    assert not w.info["legal"][0, INTERACT]
    w.do(INTERACT)
    assert w["progress"] == 2
    assert w["cents"] == 2000 + 2 * 420

    edge = World().put((7, 3)).on("Gym").do(INTERACT, RIGHT)  # at the edge: no move, no reset
    assert edge["progress"] == 1
    assert edge.do(LEFT)["progress"] == 0
    assert edge.do(RIGHT)["progress"] == 0
    assert edge["x"] == 7

    broke = World().on("Bed", cents=100).do(INTERACT, INTERACT)
    assert broke["progress"] == 1
    assert broke["cents"] == 0


def test_completion_starts_over() -> None:
    w = World().on("HomeMeal", satiation=0.1).do(INTERACT, INTERACT, INTERACT)
    assert w["progress"] == 1
    assert w["cents"] == 2000 - 450
    # 0.1 + 2 * .16875 + .1125 + .16875 - 3 * .004
    assert w["satiation"] == pytest.approx(0.1 + 3 * 0.16875 + 0.1125 - 0.012, abs=1e-12)


def test_hours_are_half_open_and_wrap_midnight() -> None:
    def open_hours(building: str) -> list[int]:
        hours = []
        for hour in range(24):
            w = World().on(building, hour=hour)
            legal = bool(w.envs.observe()[1][0, INTERACT])
            took = w.do(INTERACT)["progress"] == 1
            assert legal == took  # what the mask says is what happens
            hours += [hour] if took else []
        return hours

    assert open_hours("Job") == list(range(8, 18))
    assert open_hours("Park") == list(range(6, 22))
    assert open_hours("Bar") == [0, 1, 2, 3, *range(18, 24)]
    assert open_hours("Hospital") == list(range(24))


def test_clock_wraps() -> None:
    w = World().put(hour=23).do(WAIT)
    assert w["hour"] == 0
    assert w.obs[0, -3:-1].tolist() == [0.0, 1.0]


def test_without_temporal_one_tick_does_it_all_at_any_hour() -> None:
    w = World(temporal=False).on("Job", hour=3).do(INTERACT)
    assert w["cents"] == 2000 + 2250
    assert w["progress"] == 0
    assert w["energy"] == pytest.approx(1 - 0.15 - 0.005, abs=1e-12)
    w = World(temporal=False).on("Bed", cents=499, energy=0.3).do(INTERACT)  # all or nothing
    assert w["cents"] == 499
    w = World(temporal=False).on("Bed", cents=500, energy=0.3).do(INTERACT)
    assert w["cents"] == 0
    assert w["energy"] == pytest.approx(0.795, abs=1e-12)


def test_interact_on_open_ground_is_an_illegal_wait() -> None:
    w = World().put((4, 4))
    assert not w.envs.observe()[1][0, INTERACT]
    assert w.do(INTERACT)["energy"] == pytest.approx(0.995, abs=1e-12)


@pytest.mark.parametrize(("meter", "two_ticks_left"), [("energy", 0.0075), ("health", 0.00075)])
def test_death_tick(meter: str, two_ticks_left: float) -> None:
    """No reward on the tick of death; survival time stays; the next step is the reset step."""
    w = World(reward="wellbeing").put(**{meter: two_ticks_left}).do(WAIT)
    assert w.reward[0] > 0
    assert not w.terminated[0]
    w.do(WAIT)
    assert (w.reward[0], w.terminated[0], w.truncated[0]) == (0.0, True, False)
    assert w.info["survival_time"][0] == 1
    w.do(RIGHT)
    assert (w.reward[0], w.terminated[0], w.truncated[0], w.info["survival_time"][0]) == (0.0, False, False, 0)
    assert w["energy"] == 1.0
    w.do(WAIT)
    assert w.info["survival_time"][0] == 1


def test_wellbeing_reward_is_the_mean_after_the_clamp() -> None:
    w = World(reward="wellbeing").on("Bed", energy=0.99, satiation=0.5, health=0.6, fitness=1.0).do(INTERACT)
    assert w["energy"] == 1.0  # 1.06 before the clamp
    assert w.reward[0] == pytest.approx((1.0 + 0.496 + 0.5995) / 3, abs=1e-12)


def test_cap_truncates_and_does_not_terminate() -> None:
    w = World(max_steps=3).put().do(WAIT, WAIT)
    assert not w.truncated[0]
    w.do(WAIT)
    assert (w.reward[0], w.terminated[0], w.truncated[0], w.info["survival_time"][0]) == (1.0, False, True, 3)
    last = w.obs.copy()
    w.do(WAIT)
    assert (w.reward[0], w.truncated[0], w.info["survival_time"][0]) == (0.0, False, 0)
    assert not np.array_equal(last, w.obs)


def test_dying_at_the_cap_is_death() -> None:
    w = World(max_steps=1).put(energy=0.001).do(WAIT)
    assert (w.terminated[0], w.truncated[0]) == (True, False)


def test_random_start_ranges() -> None:
    envs = TownVectorEnv(2000, random_start=True)
    envs.reset(seed=0)
    state = envs.get_state()
    for values, low, high in (
        (state["meters"][METER["energy"]], 0.3, 1.0),
        (state["meters"][METER["satiation"]], 0.2, 1.0),
        (state["cents"] / 10000, 0.05, 0.5),
    ):
        width = high - low
        assert low <= values.min() < low + 0.02 * width
        assert high - 0.02 * width < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * width)
    others = np.delete(state["meters"], [METER["energy"], METER["satiation"]], axis=0)
    assert (others == 1.0).all()
    assert set(state["hour"].tolist()) == set(range(24))


def test_random_start_in_a_share_of_the_episodes() -> None:
    """By chance, but the same chance with every share: who starts at random with 0.3 does so with 0.6 too."""

    def drawn(share: float) -> np.ndarray:
        envs = TownVectorEnv(4000, random_start=share)
        envs.reset(seed=0)
        return envs.get_state()["meters"][METER["energy"]] < 1.0

    few, many = drawn(0.3), drawn(0.6)
    assert few.mean() == pytest.approx(0.3, abs=0.03)
    assert many.mean() == pytest.approx(0.6, abs=0.03)
    assert not (few & ~many).any()
    assert drawn(1.0).all()
    assert not drawn(0.0).any()


def test_fixed_layout_puts_buildings_on_their_cells() -> None:
    for level, size in (("town", 8), ("hamlet", 8), ("town", 11)):
        envs = TownVectorEnv(50, level=level, layout="fixed", size=size)
        envs.reset(seed=4)
        state = envs.get_state()
        want = [TABLE[BUILDINGS[k]["name"]]["cell"] for k in envs.args.kinds]
        cells = [y * size + x for x, y in want]
        assert (state["cells"] == np.array(cells)).all()
        agents = state["y"] * size + state["x"]
        assert not np.isin(agents, cells).any()
        assert len(set(agents.tolist())) > 20


def test_random_layouts_are_uniform_and_differ_by_episode() -> None:
    envs = TownVectorEnv(4000, level="hamlet", size=4)
    envs.reset(seed=0)
    first = envs.get_state()
    counts = np.bincount(first["cells"].reshape(-1), minlength=16) + np.bincount(first["y"] * 4 + first["x"])
    # 16000 placements on 16 cells: 1000 each, standard deviation about 27 (less, being without replacement)
    assert abs(counts - 1000).max() < 130
    envs.reset()
    assert (envs.get_state()["cells"] != first["cells"]).any(1).mean() > 0.99
