"""townlet serve: run folders, what is answered and refused, the episode; test_serve_page.py tests the page itself."""

from __future__ import annotations

import csv
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from paths import ROOT
from worlds import SavableClock, clock, tiny

from townlet import report
from townlet.cli import main
from townlet.envs.adapter import VectorAdapter
from townlet.evaluate import GreedyActor
from townlet.evaluation.thoughts import UNSEEN
from townlet.report import Agent
from townlet.runs.folder import process_mark, write_json
from townlet.runs.metrics import Records
from townlet.serve import play
from townlet.serve.runs import Runs
from townlet.serve.server import Server
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

EVIL = "<img src=x onerror=alert(1)>&amp;\"'"


# ---- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """runs/ with a finished hamlet run of two members and one in the Clock, whose pictures are 8 x 8."""
    root = tmp_path_factory.mktemp("runs")
    for name, config in (("hamlet", tiny(eval_every=80)), ("clock", clock(members=1))):
        run = Trainer(config.__class__(**{**config.to_dict(), "run_dir": str(root / name)}))
        run.train()
        report.finish(run)
    return root


@pytest.fixture
def server(trained):
    with Server(Runs(trained), 0) as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def get(server, path, method="GET", **headers):
    """(status, headers, body) of a request with these headers."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Host": f"localhost:{port}", **headers})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def ask(server, path, status=200, **query):
    got, headers, body = get(server, f"{path}?{urllib.parse.urlencode(query)}")
    assert got == status, body
    assert headers["Content-Type"].startswith("application/json")
    return json.loads(body)


def test_the_list_and_a_run(server, trained):
    listed = {r["name"]: r for r in ask(server, "/api/runs")["runs"]}
    assert set(listed) == {"hamlet", "clock"}
    hamlet = listed["hamlet"]
    assert (hamlet["state"], hamlet["step"], hamlet["total"], hamlet["members"]) == ("finished", 160, 160, 2)
    assert (hamlet["level"], listed["clock"]["level"]) == ("hamlet", None)
    run = ask(server, "/api/run", run="hamlet")
    assert run["score"]["column"] == "eval_survival"
    assert run["policies"]["trained"]["episodes"] == 6
    assert run["pages"] == ["report.html", "learning.png", "survival.png"]
    settings = {s["name"]: s for s in run["settings"]}
    assert (settings["hidden_size"]["value"], settings["hidden_size"]["default"]) == ("8", str(Config().hidden_size))
    assert (settings["dueling"]["value"], settings["seed"]["value"]) == ("true", "0")  # 0 is not false
    assert set(run["phases"]) == {"act", "env", "replay", "update", "eval"}
    with open(trained / "hamlet" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    loss = ask(server, "/api/curves", run="hamlet")["columns"]["loss"]
    for p in (0, 1):
        mine = [r for r in rows if r["member"] == str(p) and r["loss"]]
        assert loss["x"] == [float(r["step"]) for r in mine]
        assert loss["members"][p] == [float(r["loss"]) for r in mine]


def test_a_run_folder_itself_can_be_served(trained):
    assert [r.name for r in Runs(trained / "hamlet").all()] == ["hamlet"]
    with pytest.raises(ValueError, match="expected a run folder"):
        Runs(trained / "nowhere")


def test_runs_are_found_three_folders_down(tmp_path):
    for name in (
        "a/config.yaml",
        "b/c/metrics.csv",
        "b/d/e/config.yaml",
        "b/d/f/g/config.yaml",
        ".hidden/h/config.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    (tmp_path / os.fsdecode(b"z\xff")).mkdir()
    (tmp_path / os.fsdecode(b"z\xff") / "config.yaml").touch()
    assert sorted(r.name for r in Runs(tmp_path).all()) == ["a", "b/c", "b/d/e", "z\\xff"]


def overview(folder):
    return Runs(folder).all()[0].overview()


def test_the_state_of_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("total_steps: 1000\n")

    def state(said, process, ago=0.0, summary=None):
        sign = {"state": said, "step": 500, "updates": 3, "seconds": 10.0, "time": time.time() - ago}
        write_json(tmp_path / "status.json", {**sign, "process": process})
        (tmp_path / "summary.json").unlink(missing_ok=True)
        if summary is not None:
            write_json(tmp_path / "summary.json", summary)
        return overview(tmp_path)["state"]

    mine = process_mark(os.getpid())
    other = mine.rpartition(":")[0] + ":1"  # a process of an earlier day with our number
    assert state("training", mine, ago=9000) == "training"  # however long an evaluation takes
    assert state("training", other) == "ended"
    assert state("training", "elsewhere:1:1") == "training"
    assert state("training", "elsewhere:1:1", ago=100) == "ended"
    assert state("training", None) == "training"
    assert state("trained", mine) == "evaluating"
    assert state("trained", mine, summary={"finished": True}) == "finished"
    assert state("trained", other) == "finished"
    assert state("stopped", mine) == "stopped"
    assert state("training", mine, summary={"finished": True}) == "training"  # resumed
    (tmp_path / "status.json").unlink()
    assert overview(tmp_path)["state"] == "finished"
    write_json(tmp_path / "summary.json", {"finished": False})
    assert overview(tmp_path)["state"] == "stopped"
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.csv").write_text("step,member\n")
    assert overview(tmp_path)["state"] == "training"
    os.utime(tmp_path / "metrics.csv", (0, 0))
    assert overview(tmp_path)["state"] == "ended"


def test_the_time_left(tmp_path):
    (tmp_path / "config.yaml").write_text("total_steps: 1000\n")
    records = Records(tmp_path, tensorboard=False)
    for i in range(1, 11):  # slow at first, then 10 steps a second
        records.add(50 * i, {"seconds": 5.0 * i + 1000.0}, [{"loss": 1.0}])
    records.beat("training", 520, 9, 1052.0)
    records.close()
    got = overview(tmp_path)
    assert (got["step"], got["seconds"]) == (520, 1052.0)
    assert got["left"] == pytest.approx(480 / 10)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "status.json", "summary.json", "memory.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"[1, 2", b"{", b"[" * 800, b"null", b'{"state": [], "policies": 3, "step": "x"}',
     b'{"step": NaN, "members": -3, "total_steps": 1e999, "members": 1e300, "env": {}}',
     b'{"policies": {"a": {"mean": NaN, "low": 1e999, "high": -Infinity}}}',
     b"a: &a [x, x]\nb: &b [*a, *a]\nenv: *b\n", b"step,member\n1,0\n", b"step\n1\n", b",,,\n,,,\n"],
)  # fmt: skip
def test_a_damaged_run_does_not_break_the_list(server, trained, tmp_path, name, content):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.yaml").write_text("env: CartPole-v1\n")
    (bad / name).write_bytes(content)
    server.runs = Runs(tmp_path)
    assert [r["name"] for r in ask(server, "/api/runs")["runs"]] == ["bad"]
    assert ask(server, "/api/run", run="bad")["name"] == "bad"
    ask(server, "/api/curves", run="bad")
    assert "no agent yet" in ask(server, "/api/play/start", status=400, run="bad")["error"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "status.json", "summary.json", "agent.ckpt"])
def test_a_pipe_is_not_waited_for(server, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ("metrics.csv" if name == "config.yaml" else "config.yaml")).write_text("")
    os.mkfifo(tmp_path / "run" / name)
    server.runs = Runs(tmp_path)
    assert len(ask(server, "/api/runs")["runs"]) == 1
    ask(server, "/api/play/start", status=400, run="run")


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_every_answer_is_guarded(server):
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/app.js": "text/javascript; charset=utf-8",
        "/style.css": "text/css; charset=utf-8",
        "/favicon.svg": "image/svg+xml",
        "/api/runs": "application/json; charset=utf-8",
        "/page?run=hamlet&page=survival.png": "image/png",
    }.items():
        status, headers, body = get(server, path)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert len(body) == int(headers["Content-Length"]) > 100
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy  # no other site
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


def test_the_page_asks_nobody_else():
    static = ROOT / "townlet" / "serve" / "static"
    for path in static.iterdir():
        for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text()):
            assert "www.w3.org" in address, (path.name, address)  # the name of SVG, which nobody asks for
        assert "innerHTML" not in path.read_text()
        assert not re.search(r"<[^>]+ (style|on\w+)=", path.read_text())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machines_names_are_answered(server, host):
    assert get(server, "/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.2",
     "localhost:x", "evil.example#localhost", "localhost@evil.example", "", "0.0.0.0:8000", "192.168.0.1"],
)  # fmt: skip
def test_other_hosts_are_refused(server, host):
    for path in ("/", "/api/runs", "/app.js", "/nothing"):
        assert get(server, path, Host=host)[0] == 403


def test_a_request_without_a_host_is_refused(server):
    with socket.create_connection(server.server_address) as connection:
        connection.sendall(b"GET /api/runs HTTP/1.1\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_other_sites_get_nothing(server):
    for site in ("cross-site", "same-site"):
        assert get(server, "/api/play/start?run=hamlet", **{"Sec-Fetch-Site": site})[0] == 403
        assert get(server, "/page?run=hamlet&page=learning.png", **{"Sec-Fetch-Site": site})[0] == 403
    assert get(server, "/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page is no harm
    assert get(server, "/api/runs", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_only_get_is_answered(server):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
        assert get(server, "/api/runs", method)[0] == 405


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "/", "/etc", "../secret", "hamlet/..", "hamlet/../../secret", "./hamlet", "hamlet/", "hamlet\0",
     "%2e%2e", "..\\secret", "hamlet/checkpoints", EVIL, "\udcff"],
)  # fmt: skip
def test_no_name_leads_out_of_the_listing(server, trained, name):
    for path in ("/api/run", "/api/curves", "/api/play/start", "/page"):
        query = urllib.parse.urlencode({"run": name, "page": "learning.png"}, errors="surrogateescape")
        status, headers, body = get(server, f"{path}?{query}")
        assert status == 404
        if headers["Content-Type"].startswith("text/html"):
            assert b"<img" not in body


def test_only_known_pages_of_a_run_are_shown(server, trained):
    for page in ("config.yaml", "agent.ckpt", "../clock/learning.png", "/etc/passwd", "memory.png", "", EVIL):
        query = urllib.parse.urlencode({"run": "hamlet", "page": page})
        assert get(server, f"/page?{query}")[0] == 404
    assert get(server, "/page?run=hamlet&page=learning.png")[2].startswith(b"\x89PNG")
    link = trained / "clock" / "survival.png"
    link.symlink_to("/etc/hostname")
    try:
        assert get(server, "/page?run=clock&page=survival.png")[0] == 404
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/static/app.js", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/app.js/", "/index.html",
     "/townlet/serve/server.py", "/api", "/api/run/", "/<script>"],
)  # fmt: skip
def test_paths_that_are_no_routes(server, path):
    status, _, body = get(server, path)
    assert status == 404
    assert b"<script" not in body


def test_a_report_is_shown_in_a_sandbox(server, trained):
    status, headers, body = get(server, "/page?run=clock&page=report.html")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body == (trained / "clock" / "report.html").read_bytes()
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_numbers_that_are_none(server):
    for query in ("points=abc", "points=1e3", "points=99999999999999999999"):
        assert get(server, f"/api/curves?run=hamlet&{query}")[0] == 400
    for query in ("member=x", "seed=-1", "seed=9007199254740992", "member=2", "member=-1"):
        assert get(server, f"/api/play/start?run=hamlet&{query}")[0] == 400
    assert get(server, "/api/run?" + "&".join(f"a{i}=1" for i in range(30)))[0] == 400


def test_unchanged_curves_are_not_sent_again(server, trained):
    path = "/api/curves?run=hamlet&points=100"
    _, headers, _ = get(server, path)
    tag = headers["ETag"]
    status, _, body = get(server, path, **{"If-None-Match": tag})
    assert (status, body) == (304, b"")
    assert get(server, "/api/curves?run=hamlet&points=50", **{"If-None-Match": tag})[0] == 200
    metrics = trained / "hamlet" / "metrics.csv"
    before = metrics.read_bytes()
    try:
        metrics.write_bytes(before + before.splitlines(keepends=True)[-1].replace(b"160,1,", b"200,0,"))
        status, headers, body = get(server, path, **{"If-None-Match": tag})
        assert (status, headers["ETag"] != tag) == (200, True)
        assert json.loads(body)["columns"]["loss"]["x"][-1] == 200
    finally:
        metrics.write_bytes(before)


# ---- the episode ----------------------------------------------------------------------------------------------------


def whole_episode(server, **query):
    start = ask(server, "/api/play/start", **query)
    frames = start["frames"]
    while not frames[-1]["over"]:
        frames += ask(server, "/api/play/next", id=start["id"], steps=32)["frames"]
    return start, frames


def test_the_episode_is_the_agents(server, trained, monkeypatch):
    """Frame by frame what the agent does in the world: actions, Q-values, survival, and what it has seen."""
    monkeypatch.setattr(play, "FASTEST", 1e9)
    start, frames = whole_episode(server, run="hamlet", member=1, seed=7)
    agent = Agent.load(trained / "hamlet")
    params = {k: v[1:2] for k, v in agent.params.items()}
    actor, worlds = GreedyActor(agent.network, params, 1), agent.worlds(1)
    obs, legal = worlds.reset([7])
    seen = set()
    for t, frame in enumerate(frames):
        out = actor.step(obs, legal, np.array([t == 0]))
        assert frame["q"] == pytest.approx(out.q.flatten().tolist(), rel=1e-4, abs=1e-5)
        state = worlds.env.get_state()
        x, y = int(state["x"][0]), int(state["y"][0])
        assert (frame["t"], frame["x"], frame["y"], frame["survival"]) == (t, x, y, int(state["survival"][0]))
        assert frame["hour"] == int(state["hour"][0])
        assert frame["legal"] == legal[0].tolist()
        seen |= {(u, v) for u in range(x - 1, x + 2) for v in range(y - 1, y + 2) if 0 <= u < 8 and 0 <= v < 8}
        assert {(i % 8, i // 8) for i, s in enumerate(frame["seen"]) if s != UNSEEN} == seen
        if frame["over"]:
            break
        assert frame["next"] == int(out.action)
        assert frames[t + 1]["action"] == frame["next"]
        step = worlds.step(out.action.flatten().numpy())
        obs, legal = step.obs, step.legal
    assert frames[-1]["next"] is None
    assert frames[-1]["ending"] is not None
    assert start["town"]["size"] == 8
    assert [b["name"] for b in start["town"]["buildings"]] == ["Bed", "HomeMeal", "Job"]
    assert ask(server, "/api/play/next", id=start["id"])["frames"] == []
    assert whole_episode(server, run="hamlet", member=1, seed=7)[1] == frames
    assert whole_episode(server, run="hamlet", member=0, seed=7)[1] != frames
    assert whole_episode(server, run="hamlet", member=1, seed=8)[1] != frames
    without = whole_episode(server, run="hamlet", member=1, seed=7, memory=0)[1]
    assert without[0]["q"] == frames[0]["q"]  # nothing to remember yet
    assert without[1]["q"] != frames[1]["q"]
    assert without[1]["q_cleared"] == without[1]["q"]
    assert frames[1]["q_cleared"] != frames[1]["q"]


def test_an_episode_is_as_long_as_in_evaluation(server, trained):
    run = server.runs.get("hamlet")
    server.player.start(run, member=0, memory=True, seed=0)
    version, agent = server.player._agents["hamlet"]
    config = Config(**{**agent.config.to_dict(), "eval_max_steps": 5})
    server.player._agents["hamlet"] = version, dataclasses.replace(agent, config=config)
    frames = whole_episode(server, run="hamlet")[1]
    assert [f["over"] for f in frames] == [False] * 5 + [True]
    assert frames[-1]["cut"]


def test_one_episode_at_a_time(server):
    first = ask(server, "/api/play/start", run="hamlet")
    second = ask(server, "/api/play/start", run="hamlet")
    assert "another page" in ask(server, "/api/play/next", status=410, id=first["id"])["error"]
    assert len(ask(server, "/api/play/next", id=second["id"], steps=5)["frames"]) == 5
    assert len(ask(server, "/api/play/next", id=second["id"], steps=10**9)["frames"]) <= 32


def test_an_episode_is_paced(server, monkeypatch):
    slept = []
    monkeypatch.setattr(play.time, "sleep", slept.append)
    monkeypatch.setattr(play.time, "monotonic", lambda: 100.0 + sum(slept))
    start = ask(server, "/api/play/start", run="hamlet")
    ask(server, "/api/play/next", id=start["id"], steps=10)
    assert sum(slept) == pytest.approx(9 / play.FASTEST)


def test_a_new_agent_plays_the_next_episode(server, trained):
    start = ask(server, "/api/play/start", run="clock")
    assert start["agent"] == ask(server, "/api/run", run="clock")["agent"]
    loads = []
    real = Agent.load
    play.Agent.load = staticmethod(lambda path: (loads.append(path), real(path))[1])
    try:
        ask(server, "/api/play/start", run="clock")
        assert loads == []
        os.utime(trained / "clock" / "agent.ckpt", (1, 1))
        assert ask(server, "/api/run", run="clock")["agent"] != start["agent"]
        assert ask(server, "/api/play/start", run="clock")["agent"] != start["agent"]
        assert loads == [trained / "clock" / "agent.ckpt"]
    finally:
        del play.Agent.load
        play.Agent.load = classmethod(real.__func__)


def test_a_run_without_an_agent_file_plays_its_checkpoint(server, trained):
    path = trained / "clock" / "agent.ckpt"
    hidden = path.rename(path.with_suffix(".away"))
    try:
        assert ask(server, "/api/play/start", run="clock")["env_steps"] == 160
    finally:
        hidden.rename(path)


def test_a_damaged_agent_is_an_answer(server, trained):
    path = trained / "clock" / "agent.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        assert "cut short" in ask(server, "/api/play/start", status=400, run="clock")["error"]
    finally:
        path.write_bytes(whole)


def test_other_worlds_show_their_pictures(server, monkeypatch):
    start = ask(server, "/api/play/start", run="clock", seed=3)
    assert start["pictures"]
    assert start["frames"][0]["picture"].startswith("data:image/png;base64,")
    following = ask(server, "/api/play/next", id=start["id"])["frames"][0]
    assert following["picture"] != start["frames"][0]["picture"]  # the Clock's picture changes with every tick
    monkeypatch.setattr("worlds.Clock.render", lambda self: 1 / 0)
    start = ask(server, "/api/play/start", run="clock", seed=3)
    assert not start["pictures"]
    assert start["frames"][0]["obs"] == [0.0, following["obs"][1]]


def test_the_last_frame_is_of_the_episode(server, monkeypatch):
    """A SAME_STEP world's last observation is already the next episode's first."""

    def same_step(agent):
        worlds = SyncVectorEnv([lambda: SavableClock("rgb_array")], autoreset_mode=AutoresetMode.SAME_STEP)
        return VectorAdapter(worlds, "clocks"), True

    def last(opened):
        monkeypatch.setattr(play, "_open", opened)
        return whole_episode(server, run="clock", seed=3)[1]

    plain, same = last(play._open), last(same_step)
    assert [f["obs"] for f in same] == [f["obs"] for f in plain]
    assert same[-1]["obs"][0] == same[-1]["obs"][1] > 0  # the tick is the length
    assert same[-1]["picture"] == same[-2]["picture"]  # there is none of the end


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_port_in_use(trained, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(trained), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"--port is {port} (Address already in use); expected a free one, such as --port " in said
    assert main(["serve", str(trained), "--port", "70000"]) == 2
    assert "expected 0 (for a free one) to 65535" in capsys.readouterr().err
    assert main(["serve", str(trained / "nowhere"), "--port", "0"]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_it_is_bound_to_this_machine_and_ends_at_ctrl_c(trained):
    command = [sys.executable, "-m", "townlet", "serve", str(trained), "--port", "0"]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores Ctrl-C
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=listens)
    port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())[1])
    sockets = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()]
    listening = [local for local, _, state in sockets if state == "0A" and local.endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]
    idle = socket.create_connection(("127.0.0.1", port))  # a browser that keeps its connection
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    idle.close()
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_sigterm_ends_it_and_gives_the_port_back(trained, monkeypatch, capsys):
    ports = []

    def serve(server, real=Server.serve_forever):
        ports.append(server.server_address[1])
        threading.Timer(0.01, signal.raise_signal, [signal.SIGTERM]).start()
        real(server)

    monkeypatch.setattr(Server, "serve_forever", serve)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(trained), "--port", "0"])
    assert ended.value.code == 143
    socket.create_server(("127.0.0.1", *ports)).close()
