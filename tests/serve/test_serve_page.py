"""The page of townlet serve in headless Chromium: what is drawn is the data, it follows the run, the Town is played."""

from __future__ import annotations

import base64
import csv
import io
import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image
from worlds import tiny

from townlet.runs.folder import process_mark, write_json
from townlet.serve.runs import Runs
from townlet.serve.server import Server
from townlet.training.trainer import Trainer

pytest.importorskip("selenium", reason="the browser test needs selenium: pip install selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("the browser test needs chromium and chromedriver (Debian: chromium-driver)", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

EVIL = "<img src=x onerror='window.hurt=1'>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of two members that goes on (says its status.json), and one whose texts are markup."""
    root = tmp_path_factory.mktemp("runs")
    run = Trainer(tiny(run_dir=str(root / "hamlet"), eval_every=80, final_eval_episodes=0))
    run.train()
    sign = {"state": "training", "step": 160, "updates": run.updates, "seconds": run.elapsed, "time": time.time()}
    write_json(root / "hamlet" / "status.json", {**sign, "process": process_mark(os.getpid())})
    evil = root / f"{EVIL.replace('/', '')}"
    evil.mkdir()
    (evil / "config.yaml").write_text(f'env: "{EVIL}"\n"{EVIL}": "{EVIL}"\nnetwork: "{EVIL}"\n')
    (evil / "metrics.csv").write_text(f"step,member,loss,{EVIL}\n10,0,1,2\n20,0,3,4\n30,0,")
    policies = {EVIL: {"mean": 1.0, "low": 0.5, "high": 1.5}, "cut": None, "worse": {"mean": "x"}}
    write_json(evil / "summary.json", {"finished": True, "score": EVIL, "policies": policies})
    write_json(evil / "memory.json", {"sentence": EVIL})
    return root


@pytest.fixture(scope="module")
def server(runs):
    with Server(Runs(runs), 0) as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Chromium; whatever the page complains about in its console fails the test."""
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []


def until(browser, script, *arguments):
    """What the script returns, as soon as it is something."""
    return WebDriverWait(browser, 60, 0.05).until(lambda b: b.execute_script(f"return {script}", *arguments))


def open_run(browser, server, name="hamlet"):
    browser.get("about:blank")
    browser.get(f"{server.url}#/{name}")
    until(browser, "document.querySelector('.runpage')?.dataset.drawn")


def drawn(browser, column):
    """member (or "mean") -> [(step, value)] as the paths of a chart say, through the chart's own scale."""
    script = """
      const plot = document.querySelector(`[data-chart="${arguments[0]}"] .plot`);
      const s = JSON.parse(plot.dataset.scale);
      const back = (range, from, to, p) => range[0] + (p - from) / (to - from) * (range[1] - range[0]);
      const lines = {};
      for (const path of plot.querySelectorAll(`path.line[data-column="${arguments[0]}"]`)) {
        lines[path.dataset.member] = path.getAttribute("d").slice(1).split("L").map((point) => {
          const [x, y] = point.split(" ").map(Number);
          const value = back(s.y, s.box[2], s.box[3], y);
          return [back(s.x, s.box[0], s.box[1], x), s.log ? 10 ** value : value];
        });
      }
      return lines;"""
    return browser.execute_script(script, column)


def recorded(folder, column):
    """member -> [(step, value)] of metrics.csv."""
    with open(folder / "metrics.csv") as file:
        rows = [r for r in csv.DictReader(file) if r[column]]
    return {p: [(float(r["step"]), float(r[column])) for r in rows if r["member"] == p] for p in ("0", "1")}


def check_drawn(lines, values):
    """Half a pixel of 300 or so is the tolerance."""
    assert set(lines) == {*values, "mean"}
    for p, points in values.items():
        spread = max(v for own in values.values() for _, v in own)
        assert [x for x, _ in lines[p]] == pytest.approx([x for x, _ in points], abs=0.5)
        assert [y for _, y in lines[p]] == pytest.approx([y for _, y in points], abs=0.003 * spread)
    mean = [(a[1] + b[1]) / 2 for a, b in zip(values["0"], values["1"], strict=True)]
    assert [y for _, y in lines["mean"]] == pytest.approx(mean, abs=0.003 * spread)


def test_the_curves_are_the_data_and_follow_it(browser, server, runs):
    open_run(browser, server)
    browser.execute_script("window.sameDocument = true")
    for column in ("loss", "td_error", "q", "eval_survival"):
        check_drawn(drawn(browser, column), recorded(runs / "hamlet", column))
    with pytest.raises(AssertionError):  # the control: another column's values
        check_drawn(drawn(browser, "loss"), recorded(runs / "hamlet", "td_error"))
    assert browser.execute_script("return document.querySelector('.pill').textContent") == "training"
    before = recorded(runs / "hamlet", "loss")
    assert len(drawn(browser, "loss")["0"]) == len(before["0"])
    with open(runs / "hamlet" / "metrics.csv", "a", newline="") as file:
        fields = next(csv.reader(open(runs / "hamlet" / "metrics.csv")))  # noqa: SIM115
        writer = csv.DictWriter(file, fields)
        for step in (200, 240):
            writer.writerows({"step": step, "member": p, "loss": 0.5 + p, "seconds": step} for p in (0, 1))
    longer = (
        """document.querySelector('[data-chart="loss"] path.mean').getAttribute("d").split("L").length > arguments[0]"""
    )
    until(browser, longer, len(before["0"]))
    check_drawn(
        drawn(browser, "loss"), {p: [*own, (200.0, 0.5 + int(p)), (240.0, 0.5 + int(p))] for p, own in before.items()}
    )
    assert browser.execute_script("return window.sameDocument")
    browser.find_element("xpath", "//button[text()='hide members']").click()
    assert set(drawn(browser, "loss")) == {"mean"}
    until(browser, "document.querySelector('.tiles').textContent.includes('240')")


def picture(browser):
    """The Town's canvas, int [height, width, 4]."""
    url = browser.execute_script("return document.getElementById('town').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))), dtype=int)


def moved(before, now):
    """Pixels that are plainly of another colour."""
    return int((np.abs(before - now).max(axis=2) > 60).sum())


def yellow(picture, player):
    """Whether a face is where the agent is (8 pixels of edge, 8 x 8 cells)."""
    frame, cell = player._episode.frame(), (len(picture) - 16) / 8
    red, green, blue, _ = picture[int(8 + (frame["y"] + 0.46) * cell), int(8 + (frame["x"] + 0.5) * cell)]
    return red > 200 and green > 150 and blue < 0.8 * red


def tick(browser):
    return int(browser.execute_script("return document.querySelector('.play').dataset.t"))


def settled(browser):
    """The picture once the agent has stopped gliding."""
    until(browser, "document.getElementById('town').dataset.shows === document.querySelector('.play').dataset.t")
    return picture(browser)


def press(browser, key):
    browser.find_element("tag name", "body").send_keys(key)


def test_the_town_is_played(browser, server):
    open_run(browser, server)
    until(browser, "document.querySelector('.play').dataset.t === '0'")
    start = settled(browser)
    assert tick(browser) == 0
    assert moved(start, settled(browser)) == 0  # the control: nothing moves by itself
    assert start.std(axis=(0, 1))[:3].min() > 5  # and something is drawn
    assert yellow(start, server.player)
    browser.find_element("id", "step").click()
    until(browser, "document.querySelector('.play').dataset.t === '1'")
    assert moved(start, settled(browser)) > 500
    press(browser, Keys.ARROW_RIGHT)
    until(browser, "document.querySelector('.play').dataset.t === '2'")
    assert yellow(settled(browser), server.player)
    press(browser, "r")
    until(browser, "document.querySelector('.play').dataset.t === '0'")
    assert moved(start, settled(browser)) == 0  # the same episode again
    assert until(browser, "document.querySelectorAll('.action.chosen').length") == 1
    assert browser.execute_script("return document.querySelectorAll('.meter').length") == 4
    press(browser, "]")
    assert browser.execute_script("return document.querySelector('.speed output').textContent") == "15/s"
    press(browser, " ")
    until(browser, "Number(document.querySelector('.play').dataset.t) > 4")
    press(browser, " ")
    assert browser.execute_script("return document.getElementById('play').getAttribute('aria-pressed')") == "false"
    assert moved(start, settled(browser)) > 500
    press(browser, "m")
    until(browser, "document.querySelector('.mind').textContent.includes('No memory')")
    press(browser, "n")
    until(browser, "document.getElementById('seed').value === '1' && document.querySelector('.play').dataset.t === '0'")
    assert moved(start, settled(browser)) > 500
    browser.execute_script(
        "const m = document.getElementById('member'); m.value = '1'; m.dispatchEvent(new Event('change'))"
    )
    until(browser, "document.querySelector('.message').hidden")
    q = browser.execute_script("return document.getElementById('q').textContent")
    assert len(q) > 20


def test_the_episode_ends_and_the_next_begins(browser, server):
    open_run(browser, server)
    until(browser, "document.querySelector('.play').dataset.t === '0'")
    browser.execute_script(
        "const s = document.getElementById('speed'); s.value = 7; s.dispatchEvent(new Event('input'))"
    )
    browser.find_element("id", "big-play").click()
    until(browser, "document.querySelector('.results li')?.textContent")
    until(
        browser,
        "document.getElementById('seed').value === '1' && Number(document.querySelector('.play').dataset.t) > 0",
    )


def test_another_page_takes_the_stage(browser, server):
    open_run(browser, server)
    until(browser, "document.querySelector('.play').dataset.t === '0'")
    server.player.start(server.runs.get("hamlet"), member=0, memory=True, seed=5)
    browser.find_element("id", "step").click()
    assert "Another page" in until(browser, "document.querySelector('.message').textContent")
    said = browser.get_log("browser")
    assert [s for s in said if "410" not in s["message"]] == []
    browser.find_element("id", "play").click()
    until(browser, "Number(document.querySelector('.play').dataset.t) > 0")


def test_texts_of_a_run_are_texts(browser, server, runs):
    browser.get("about:blank")
    browser.get(server.url)
    cards = until(browser, "[...document.querySelectorAll('.run')].map((c) => c.textContent).sort()")
    assert len(cards) == 2
    evil = EVIL.replace("/", "")
    assert cards[0].startswith(evil)
    browser.find_element("css selector", f'.run[data-run="{evil}"]').click()
    until(browser, "document.querySelector('.runpage')?.dataset.drawn")
    until(browser, "document.querySelector('.policies')?.textContent")
    assert browser.execute_script("return document.body.innerText").count(EVIL) >= 5
    assert "no agent yet" in browser.find_element("css selector", ".play").text
    assert not browser.find_element("id", "town").is_displayed()
    assert "Loss" in browser.execute_script("return document.querySelector('.charts').textContent")
    assert browser.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert browser.execute_script("return window.hurt") is None
    browser.find_element("link text", "All runs").click()
    until(browser, "document.querySelectorAll('.run').length === 2")


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_hangs_over_the_edge(browser, server, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    open_run(browser, server)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
