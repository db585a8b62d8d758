"""Pictures show what the state says."""

from __future__ import annotations

import numpy as np
import pytest

from townlet.envs import TownEnv, TownVectorEnv
from townlet.envs.town.render import ansi, rgb_array, scene


def fixed(**args: object) -> TownVectorEnv:
    envs = TownVectorEnv(1, layout="fixed", random_start_hour=False, **args)
    envs.reset(seed=0)
    return envs


def picture(envs: TownVectorEnv, last_action: int = -1, **values: float) -> tuple[str, np.ndarray]:
    state = envs.get_state()
    for name, value in values.items():
        state[name][..., 0] = value
    s = scene(envs.args, state, 0, last_action)
    return ansi(s), rgb_array(s)


def test_ansi_shows_map_meters_clock_and_progress() -> None:
    envs = fixed()
    text, _ = picture(envs, last_action=4, x=1, y=3, hour=7, progress=1, survival=12)
    lines = text.splitlines()
    assert lines[0].split() == ["Town", "tick", "12/500", "07:00", "(day)", "last", "action:", "●", "interact"]
    assert lines[2 + 3].strip("│").split()[:3] == ["·", "@Me", "·"]  # row 3 of the map: the agent at the HomeMeal
    assert "jo" in lines[2 + 6]
    assert "Jo" not in lines[2 + 6]
    assert "here: HomeMeal, tick 1 of 2" in text
    assert [line.split()[0] for line in lines[12:20]] == [
        *("energy", "hygiene", "satiation", "money", "mood", "social", "health", "fitness")
    ]
    assert lines[12].count("█") == 20
    assert lines[15].count("█") == 4
    assert lines[15].endswith("$20.00")
    assert "Jo Job        pays $22.50, 4 ticks, 08-18 h  (closed)" in text
    assert "Ba Bar        $15.00, 2 ticks, 18-04 h  (closed)" in text
    later, _ = picture(envs, x=6, y=6, hour=20)
    assert "here: Job (closed until 08:00)" in later
    assert "(night)" in later
    assert "last action: -" in later
    assert "open ground" in picture(envs, x=4, y=4)[0]


def test_ansi_marks_low_meters_and_the_end() -> None:
    envs = fixed()
    low, _ = picture(envs, meters=0.2)
    assert low.count("  !") == 7
    assert "!" not in picture(envs)[0]
    assert "died of exhaustion" in picture(envs, meters=0.0, done=1)[0]
    assert "died" not in picture(envs, done=1)[0]
    assert "reached the cap" in picture(envs, done=1)[0]


def test_ansi_dots_are_the_cells_in_sight() -> None:
    text, _ = picture(fixed(), x=4, y=4)
    rows = text.splitlines()[2:10]
    assert sum(row.count("·") for row in rows) == 25 - 1 - 3  # not the agent, Shower, FastFood, Job
    assert sum(row.count("·") for row in picture(fixed(partial=False), x=4, y=4)[0].splitlines()[2:10]) == 64 - 14 - 1


@pytest.mark.parametrize("args", [{}, {"level": "hamlet"}, {"partial": False, "temporal": False}])
def test_rgb_array_follows_the_state(args: dict) -> None:
    envs = fixed(**args)
    _, start = picture(envs, x=4, y=4)
    assert start.shape == (560, 880, 3)
    assert start.dtype == np.uint8
    assert np.array_equal(start, picture(envs, x=4, y=4)[1])
    moved = picture(envs, x=4, y=5)[1]
    assert (start != moved)[:, :540].any()
    assert np.array_equal(start[:, 560:], moved[:, 560:])
    tired = picture(envs, x=4, y=4, meters=0.25)[1]
    assert (start != tired)[:, 560:].any()
    night = picture(envs, x=4, y=4, hour=1)[1]
    noon = picture(envs, x=4, y=4, hour=12)[1]
    assert night[:, :540].mean() < noon[:, :540].mean() - 20
    for changes in ({"done": 1}, {"meters": 0.0, "done": 1}, {"x": 1, "y": 1, "progress": 2}):
        assert (picture(envs, **({"x": 4, "y": 4} | changes))[1] != start).any()


def test_small_cells_are_drawn() -> None:
    for size in (20, 60):
        frames = TownVectorEnv(1, size=size, render_mode="rgb_array")
        frames.reset(seed=0)
        assert np.unique(frames.render()[0].reshape(-1, 3), axis=0).shape[0] > 50


def test_render_modes_of_both_environments() -> None:
    env = TownEnv(render_mode="ansi")
    env.reset(seed=0)
    assert "last action: -" in env.render()
    env.step(5)
    assert "last action: ○ wait" in env.render()
    envs = TownVectorEnv(2, render_mode="rgb_array")
    envs.reset(seed=0)
    frames = envs.render()
    assert len(frames) == 2
    assert (frames[0] != frames[1]).any()
    assert TownEnv().render() is None
    assert TownVectorEnv(1).render() is None


def test_pillow_font_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    from townlet.envs.town import render

    def gone() -> str:
        raise OSError("no data path")

    with_fonts = picture(fixed())[1]
    render._font.cache_clear()
    monkeypatch.setattr(matplotlib, "get_data_path", gone)
    without = picture(fixed())[1]
    render._font.cache_clear()
    assert without.shape == with_fonts.shape
    assert (without != with_fonts).any()
