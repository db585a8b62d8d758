// The panel in which a run's agent plays an episode: the controls, the Town (or the world's own pictures), the meters
// and the Q-values.

import { spark } from "./charts.js";
import { ask, compact, el, Failure, fill } from "./dom.js";
import { daylight, TownCanvas } from "./town.js";

const SPEEDS = [1, 2, 4, 8, 15, 30, 60, 120];
const PAUSE = 1500; // milliseconds between episodes

export class PlayPanel {
  constructor(run) {
    this.run = run;
    this.buffer = [];
    this.results = [];
    this.playing = this.busy = false;
    this.seed = 0;
    this.speed = 8;
    this.build();
    this.onKey = (e) => this.key(e);
    document.addEventListener("keydown", this.onKey);
    this.visible = true;
    this.watcher = new IntersectionObserver(([entry]) => (this.visible = entry.isIntersecting));
    this.watcher.observe(this.node);
  }

  close() {
    this.closed = true;
    document.removeEventListener("keydown", this.onKey);
    this.watcher.disconnect();
    clearTimeout(this.timer);
  }

  build() {
    const button = (id, text, title, f, kind = "") =>
      el("button", { type: "button", class: kind, id, title, on: { click: f } }, text);
    this.canvas = el("canvas", { class: "town", id: "town", role: "img", ariaLabel: "The Town" });
    this.picture = el("img", { class: "picture", alt: "The world", hidden: true });
    this.bars = el("div", { class: "observation", hidden: true });
    this.over = el("div", { class: "over", hidden: true });
    this.big = button("big-play", "▶", "Play", () => this.toggle(), "big");
    this.playButton = button("play", "▶", "Play or pause (space)", () => this.toggle(), "first");
    this.stepButton = button("step", "Step", "Take one step (right arrow)", () => this.step());
    this.again = button("again", "↺", "Play the same episode again (R)", () => this.start());
    this.fresh = button("fresh", "New seed", "Play another episode (N)", () => this.start({ seed: this.seed + 1 }));
    this.seedInput = el("input", {
      id: "seed", type: "number", min: 0, step: 1, value: 0, title: "Seed of the episode",
      on: { change: () => this.start({ seed: Math.max(0, Math.floor(Number(this.seedInput.value)) || 0) }) },
    });
    this.speedInput = el("input", {
      id: "speed", type: "range", min: 0, max: SPEEDS.length - 1, value: 3, title: "Steps per second ([ and ])",
      on: { input: () => this.setSpeed(Number(this.speedInput.value)) },
    });
    this.speedText = el("output", {}, "8/s");
    this.memberSelect = el("select", { id: "member", title: "Member", on: { change: () => this.start() } });
    this.memoryInput = el("input", { id: "memory", type: "checkbox", checked: true, on: { change: () => this.start() } });
    this.memoryLabel = el("label", { class: "switch", title: "When off, the agent's state is zeroed before every step (M)" }, this.memoryInput, el("i"), "memory");
    this.memberLabel = el("label", {}, "member ", this.memberSelect);
    this.message = el("p", { class: "message", role: "status" }, "loading the agent…");
    this.clock = el("div", { class: "clock" }, el("i"), el("b"));
    this.tick = el("div", { class: "tick" });
    this.here = el("div", { class: "here" });
    this.meters = el("div", { class: "meters" });
    this.actions = el("div", { class: "actions", id: "q" });
    this.state = el("canvas", { class: "state", height: 16, role: "img", ariaLabel: "The LSTM's state" });
    this.without = el("p", { class: "without" });
    this.stateTitle = el("h3", {}, "Memory");
    this.effects = [];
    this.effectTitle = el("h3", {});
    this.effect = el("div", { class: "effect" });
    this.log = el("ol", { class: "results" });
    this.version = el("p", { class: "version" });
    this.node = el(
      "section",
      { class: "play card", ariaLabel: "The agent at play" },
      el(
        "div",
        { class: "scene" },
        el("div", { class: "frame" }, this.canvas, this.picture, this.bars, this.over, this.big),
        el(
          "div",
          { class: "controls" },
          el("div", { class: "group" }, this.playButton, this.stepButton, this.again),
          el("label", { class: "speed" }, this.speedInput, this.speedText),
          this.memoryLabel,
          this.memberLabel,
          el("div", { class: "group" }, el("label", {}, "seed ", this.seedInput), this.fresh),
        ),
        this.message,
      ),
      el(
        "div",
        { class: "mind" },
        el("div", { class: "sky" }, this.clock, this.tick),
        this.here,
        this.meters,
        el("h3", {}, "Q-values"),
        this.actions,
        this.without,
        this.stateTitle,
        this.state,
        this.effectTitle,
        this.effect,
        this.log,
        this.version,
      ),
    );
    this.view = new TownCanvas(this.canvas);
  }

  // Takes in what the page knows of the run. A new agent plays from the next episode, or at once if none has begun.
  know(details) {
    this.newest = details.agent;
    const tried = this.failed && this.newest === this.refused;
    if (this.newest && !this.episode && !this.busy && !tried) this.start();
    else if (!this.newest) this.say("This run has no agent yet. It is written at the first evaluation or checkpoint.");
    const waiting = this.episode && this.newest !== this.episode.agent;
    if (waiting && !this.playing && this.frame?.t === 0 && !this.busy && !tried) this.start();
    this.showVersion();
    this.vacate();
  }

  // Where no agent can play, only the reason is shown.
  vacate() {
    this.node.classList.toggle("vacant", !this.episode && (!this.newest || Boolean(this.failed)));
  }

  showVersion() {
    if (!this.episode) return;
    const newer = this.newest && this.newest !== this.episode.agent ? "; a newer one plays the next episode" : "";
    this.version.textContent = `agent of step ${this.episode.env_steps.toLocaleString("en")}${newer}`;
  }

  async start({ seed = this.seed } = {}) {
    if (this.busy) {
      this.again_with = { seed };
      return;
    }
    this.busy = true;
    clearTimeout(this.timer);
    this.seed = seed;
    this.seedInput.value = seed;
    const query = { run: this.run, seed, member: this.memberSelect.value || 0, memory: this.memoryInput.checked ? 1 : 0 };
    try {
      const { value } = await ask("/api/play/start", query);
      if (this.closed) return;
      this.failed = false;
      this.episode = value;
      this.buffer = [];
      this.vacate();
      this.about(value);
      this.show(value.frames[0], 0);
      this.say("");
    } catch (error) {
      this.fail(error);
    } finally {
      this.busy = false;
    }
    if (this.again_with) {
      const next = this.again_with;
      this.again_with = null;
      return this.start(next);
    }
    if (this.playing) this.loop();
  }

  about(e) {
    const town = e.town ?? null;
    this.canvas.hidden = !town;
    this.picture.hidden = Boolean(town) || !e.pictures;
    this.bars.hidden = Boolean(town) || e.pictures;
    this.clock.hidden = this.here.hidden = this.meters.hidden = !town;
    this.memoryLabel.hidden = !e.has_memory;
    this.memberLabel.hidden = e.members < 2;
    if (this.memberSelect.length !== e.members) {
      this.memberSelect.replaceChildren(...Array.from({ length: e.members }, (_, p) => el("option", { value: p }, String(p))));
      this.memberSelect.value = e.member;
    }
    this.stateTitle.textContent = e.memory ? "Memory: the LSTM's state" : "No memory: the state is zeroed at every step";
    this.showVersion();
    this.actions.replaceChildren(
      ...e.actions.map((name) =>
        el("div", { class: "action" }, el("span", {}, name), el("i", {}, el("em")), el("b"))),
    );
    if (!town) return;
    this.view.begin(town);
    this.shown = town.meters.map((name, i) => [name, i]).filter(([name]) => !town.still.includes(name));
    this.meters.replaceChildren(
      ...this.shown.map(([name]) => el("div", { class: `meter ${name}` }, el("span", {}, name), el("i"), el("b"))),
    );
  }

  show(frame, glide) {
    this.frame = frame;
    this.node.dataset.t = frame.t;
    const e = this.episode;
    if (e.town) this.showTown(frame, glide);
    else {
      if (frame.picture) this.picture.src = frame.picture;
      else this.showObservation(frame.obs);
      this.tick.textContent = `step ${frame.t}, return ${compact(frame.return)}`;
    }
    this.showActions(frame);
    this.showState(frame.state);
    this.showEffect(frame);
    this.over.hidden = !frame.over;
    if (frame.over) this.finish(frame);
  }

  showTown(frame, glide) {
    const { town } = this.episode;
    this.view.show(frame, glide);
    this.clock.firstChild.style.left = `${(100 * (frame.hour + 0.5)) / 24}%`;
    this.clock.firstChild.className = daylight(frame.hour) > 0.4 ? "sun" : "moon";
    this.clock.classList.toggle("late", frame.hour >= 15); // moves the label aside, so that it does not cover the sun
    this.clock.lastChild.textContent = `${String(frame.hour).padStart(2, "0")}:00`;
    this.tick.textContent = `tick ${frame.survival} of ${town.max_steps}`;
    this.here.textContent = frame.here;
    this.shown.forEach(([name, i], row) => {
      const [, bar, number] = this.meters.children[row].children;
      const value = frame.meters[i];
      bar.style.setProperty("--share", value);
      bar.className = name === "money" ? "gold" : value < 0.15 ? "red" : value < 0.35 ? "amber" : "green";
      number.textContent = name === "money" ? `$${(frame.cents / 100).toFixed(2)}` : value.toFixed(2);
    });
  }

  showObservation(values) {
    const widest = Math.max(1e-9, ...values.map(Math.abs));
    if (this.bars.children.length !== values.length) this.bars.replaceChildren(...values.map(() => el("i")));
    values.forEach((v, i) => {
      this.bars.children[i].style.setProperty("--share", Math.abs(v) / widest);
      this.bars.children[i].className = v < 0 ? "negative" : "";
    });
  }

  // The bars show the Q-values. The marks show what they would be had the state been cleared just now.
  showActions(frame) {
    const legal = (a) => !frame.legal || frame.legal[a];
    const shown = [...frame.q, ...frame.q_cleared].filter((_, a) => legal(a % frame.q.length));
    const [low, high] = [Math.min(...shown), Math.max(...shown)];
    const share = (q) => 0.05 + (0.93 * (q - low)) / (high - low || 1);
    frame.q.forEach((q, a) => {
      const row = this.actions.children[a];
      const [, bar, number] = row.children;
      row.className = `action${a === frame.next ? " chosen" : ""}${legal(a) ? "" : " illegal"}`;
      bar.style.setProperty("--share", legal(a) ? share(q) : 0);
      bar.firstChild.style.left = `${100 * share(frame.q_cleared[a])}%`;
      bar.firstChild.hidden = !legal(a) || !this.episode.memory;
      number.textContent = legal(a) ? q.toPrecision(4) : "–";
    });
    const { memory, actions } = this.episode;
    const same = frame.cleared === frame.next;
    this.without.textContent = !memory || frame.next === null ? "" : `Without its memory it would ${same ? "do the same" : `choose ${actions[frame.cleared]}`}.`;
    this.without.className = `without${same ? "" : " other"}`;
  }

  showState(values) {
    const pen = this.state.getContext("2d");
    const columns = Math.min(values.length, 64);
    const rows = Math.ceil(values.length / columns);
    if (this.state.width !== columns * 8) this.state.width = columns * 8;
    if (this.state.height !== rows * 14) this.state.height = rows * 14;
    pen.clearRect(0, 0, this.state.width, this.state.height);
    values.forEach((v, i) => {
      pen.fillStyle = v < 0 ? `rgba(226, 112, 58, ${Math.min(1, -v)})` : `rgba(64, 132, 214, ${Math.min(1, v)})`;
      pen.fillRect((i % columns) * 8, Math.floor(i / columns) * 14, 7, 13);
    });
  }

  // Draws how much the state moved the Q-values at each step of the episode.
  showEffect(frame) {
    if (frame.t === 0) this.effects = [];
    this.effects.push(frame.effect);
    this.effectTitle.hidden = this.effect.hidden = !this.episode.memory;
    this.effectTitle.textContent = `It moves a Q-value by up to ${compact(frame.effect)}`;
    fill(this.effect, spark({ x: this.effects.map((_, i) => i), mean: this.effects }, 300, 40));
  }

  finish(frame) {
    const score = this.episode.town ? `${frame.survival} ticks` : `return ${compact(frame.return)}`;
    const ending = frame.ending ?? (frame.cut ? "cut by the limit" : "over");
    this.over.replaceChildren(el("b", {}, ending), el("span", {}, score));
    this.over.className = `over ${this.episode.town && frame.ending !== "reached the cap" ? "bad" : "good"}`;
    if (this.results[0]?.id === this.episode.id) return;
    const { id, seed, member, memory, has_memory } = this.episode;
    this.results = [{ id, seed, member, memory, score }, ...this.results].slice(0, 6);
    this.log.replaceChildren(
      ...this.results.map((r) =>
        el("li", {}, el("b", {}, r.score), ` seed ${r.seed}`, this.episode.members > 1 ? `, member ${r.member}` : "", has_memory ? `, ${r.memory ? "with" : "without"} memory` : "")),
    );
  }

  // ---- time -------------------------------------------------------------------------------------------------------

  toggle(on = !this.playing) {
    this.playing = on;
    this.big.hidden = true;
    this.playButton.textContent = on ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-pressed", on);
    clearTimeout(this.timer);
    if (!on) return;
    if (this.failed) this.start();
    else if (this.frame?.over) this.start({ seed: this.seed + 1 });
    else this.loop();
  }

  async step() {
    this.toggle(false);
    await this.advance(1, 160);
  }

  setSpeed(index) {
    this.speed = SPEEDS[index];
    this.speedInput.value = index;
    this.speedText.textContent = `${this.speed}/s`;
  }

  // The panel asks for nothing while nobody looks at it.
  async loop() {
    clearTimeout(this.timer);
    if (!this.playing || this.closed || this.busy) return;
    const begun = performance.now();
    let wait = 1000 / this.speed;
    if (document.hidden || !this.visible) wait = 250;
    else if (this.frame?.over) {
      this.timer = setTimeout(() => this.playing && this.start({ seed: this.seed + 1 }), PAUSE);
      return;
    } else await this.advance(Math.max(1, Math.ceil(this.speed / 8)), Math.min(wait, 220));
    if (this.closed || !this.playing) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.loop(), Math.max(0, wait - (performance.now() - begun)));
  }

  // Shows the next frame. When none is left, asks the server for `ahead` frames.
  async advance(ahead, glide) {
    if (!this.episode || this.busy) return;
    const { id } = this.episode;
    if (!this.buffer.length && !this.frame.over) {
      this.busy = true;
      try {
        const { value } = await ask("/api/play/next", { id, steps: ahead });
        if (this.episode.id === id) this.buffer.push(...value.frames);
      } catch (error) {
        this.fail(error);
      } finally {
        this.busy = false;
      }
      if (this.again_with) {
        const next = this.again_with;
        this.again_with = null;
        return this.start(next);
      }
    }
    if (this.buffer.length && this.episode.id === id) this.show(this.buffer.shift(), glide);
  }

  fail(error) {
    this.toggle(false);
    this.failed = true;
    this.refused = this.newest;
    this.vacate();
    this.say(error instanceof Failure ? `${error.message}.` : "The server does not answer.");
    if (error.status === 410) this.say("Another page has started an episode. Press play to start yours again.");
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  key(event) {
    const typing = event.target.closest("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const does = {
      " ": () => this.toggle(),
      ArrowRight: () => this.step(),
      r: () => this.start(),
      n: () => this.start({ seed: this.seed + 1 }),
      m: () => {
        if (this.memoryLabel.hidden) return;
        this.memoryInput.checked = !this.memoryInput.checked;
        this.start();
      },
      "[": () => this.setSpeed(Math.max(0, SPEEDS.indexOf(this.speed) - 1)),
      "]": () => this.setSpeed(Math.min(SPEEDS.length - 1, SPEEDS.indexOf(this.speed) + 1)),
    }[event.key];
    if (!does || (event.target.matches("button, a, input") && [" ", "ArrowRight"].includes(event.key))) return;
    event.preventDefault();
    does();
  }
}

