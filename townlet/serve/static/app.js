// The page: the list of runs, or one run. It asks the server for news as long as somebody looks at it.

import { Chart, spark } from "./charts.js";
import { ask, columnName, compact, duration, el, Failure, fill, pill } from "./dom.js";
import { PlayPanel } from "./play.js";

const view = document.getElementById("view");
const trouble = document.getElementById("trouble");
const POINTS = 400;
const GROUPS = [
  ["Loss", ["loss"]],
  ["TD error", ["td_error"]],
  ["Q-values", ["q", "target"]],
  ["Gradient norm", ["grad_norm"]],
  ["State norm", ["h_norm", "c_norm"]],
  ["Exploration (epsilon)", ["epsilon"]],
];
const LATE = ["td_error_max", "q_max", "clipped", "priority", "replay_fill", "valid", "episodes", "train_length", "steps_per_s", "updates_per_s"];
const ELSEWHERE = /^(seconds|updates|.*_s|train_.*|eval_.*)$/; // shown in the tiles, the split of time and the first chart
const PHASES = { act: "acting", env: "worlds", replay: "storing", update: "learning", eval: "evaluating" };

let page = null;

// ---- the list -------------------------------------------------------------------------------------------------------

class ListPage {
  constructor() {
    this.cards = new Map();
    this.grid = el("div", { class: "runs" });
    this.empty = el("p", { class: "empty", hidden: true });
    this.node = el("div", {}, el("h1", {}, "Runs"), this.empty, this.grid);
  }

  close() {}

  async refresh() {
    const { value } = await ask("/api/runs");
    document.getElementById("where").textContent = value.folder;
    document.title = "Townlet";
    this.empty.hidden = value.runs.length > 0;
    this.empty.textContent = `No runs in ${value.folder} yet. Start one with: townlet train`;
    if (value.runs.length === 1 && location.hash.length < 3 && !this.seen) location.replace(linkTo(value.runs[0].name));
    this.seen = true;
    const order = value.runs.map((run) => {
      const text = JSON.stringify(run);
      const known = this.cards.get(run.name);
      if (known?.text === text) return known.node;
      const node = card(run);
      this.cards.set(run.name, { text, node });
      return node;
    });
    const same = order.length === this.grid.children.length && order.every((node, i) => this.grid.children[i] === node);
    if (!same) this.grid.replaceChildren(...order);
    return value.runs.some((run) => run.state === "training") ? 2000 : 5000;
  }
}

function card(run) {
  const score = run.score ? compact(run.score.value) : "–";
  const name = run.score ? columnName(run.score.column) : "no score yet";
  return el(
    "a",
    { class: `card run ${run.state}`, href: linkTo(run.name), data: { run: run.name } },
    el("div", { class: "head" }, el("strong", {}, run.name), pill(run.state)),
    el("div", { class: "what" }, world(run), run.members > 1 ? ` · ${run.members} members` : ""),
    el("div", { class: "score" }, el("b", {}, score), el("span", {}, name)),
    spark(run.spark),
    progressBar(run),
    el("div", { class: "foot" }, el("span", {}, steps(run)), el("span", {}, run.state === "training" && run.left !== null ? `${duration(run.left)} left` : duration(run.seconds))),
  );
}

const world = (run) => (run.level ? (run.level === "hamlet" ? "The Town · hamlet" : "The Town") : run.env);
const steps = (run) => `${compact(run.step)}${run.total ? ` of ${compact(run.total)}` : ""} steps`;
const linkTo = (name) => `#/${encodeURIComponent(name)}`;

function progressBar(run) {
  const bar = el("div", { class: "progress", role: "progressbar" }, el("i"));
  setProgress(bar, run);
  return bar;
}

function setProgress(bar, run) {
  const share = run.total ? Math.min(1, run.step / run.total) : 0;
  bar.firstChild.style.width = `${100 * share}%`;
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
}

// ---- one run --------------------------------------------------------------------------------------------------------

class RunPage {
  constructor(name) {
    this.name = name;
    this.tag = null;
    this.charts = new Map();
    this.members = true;
    this.head = el("div", { class: "runhead" });
    this.tiles = el("div", { class: "tiles" });
    this.bar = el("div", { class: "progress", role: "progressbar" }, el("i"));
    this.play = new PlayPanel(name);
    this.grid = el("div", { class: "charts" });
    this.toggle = el("button", { type: "button", class: "quiet", on: { click: () => this.flip() } }, "hide members");
    this.more = el("div", { class: "charts" });
    this.moreBox = el("details", { class: "more" }, el("summary", {}, "More curves"), this.more);
    this.results = el("section", { class: "card results-card" });
    this.time = el("section", { class: "card time-card" });
    this.memory = el("section", { class: "card memory-card", hidden: true });
    this.settings = el("section", { class: "card settings-card" });
    this.node = el(
      "div",
      { class: "runpage" },
      this.head,
      this.bar,
      this.tiles,
      this.play.node,
      el("div", { class: "title" }, el("h2", {}, "Curves"), this.toggle),
      this.grid,
      this.moreBox,
      el("div", { class: "pair" }, this.results, this.time),
      this.memory,
      this.settings,
    );
  }

  close() {
    this.play.close();
    for (const chart of this.charts.values()) chart.close();
  }

  async refresh() {
    const { value: run } = await ask("/api/run", { run: this.name });
    this.show(run);
    const curves = await ask("/api/curves", { run: this.name, points: POINTS }, this.tag);
    if (curves) {
      this.tag = curves.tag;
      this.columns = curves.value.columns;
      this.meanings = curves.value.meanings;
      this.draw();
    }
    return run.state === "training" ? 1500 : 4000;
  }

  show(run) {
    this.run = run;
    document.title = `${run.name} · Townlet`;
    fill(document.getElementById("where"), el("a", { href: "#/" }, "All runs"));
    this.head.replaceChildren(el("h1", {}, run.name), pill(run.state), el("span", { class: "what" }, world(run)));
    setProgress(this.bar, run);
    const training = run.state === "training";
    const share = run.total ? `${((100 * run.step) / run.total).toFixed(run.step < run.total ? 1 : 0)}%` : "";
    const tiles = [
      [run.score ? compact(run.score.value) : "–", run.score ? columnName(run.score.column) : "no score yet", "lead"],
      [steps(run), share],
      [training ? duration(run.left) : duration(run.seconds), training ? `left, after ${duration(run.seconds)}` : "of training"],
      [compact(run.rates.steps_per_s), "steps per second"],
      [compact(run.rates.updates_per_s), "updates per second"],
      [String(run.members), run.members === 1 ? "member" : "members"],
    ];
    this.tiles.replaceChildren(...tiles.map(([big, small, kind]) => el("div", { class: kind ?? "" }, el("b", {}, big), el("span", {}, small))));
    this.play.know(run);
    this.toggle.hidden = run.members < 2;
    const quiet = JSON.stringify([run.policies, run.phases, run.settings, run.pages, run.memory, run.unreadable, Math.round(run.seconds / 20)]);
    if (quiet === this.quiet) return;
    this.quiet = quiet;
    this.showResults(run);
    this.showTime(run);
    this.showMemory(run);
    this.showSettings(run);
  }

  flip() {
    this.members = !this.members;
    this.toggle.textContent = this.members ? "hide members" : "show members";
    this.draw();
  }

  draw() {
    const columns = this.columns ?? {};
    const kind = ["survival", "return"].find((k) => columns[`eval_${k}`] || columns[`train_${k}`]);
    if (kind) {
      const [greedy, exploring] = [`eval_${kind}`, `train_${kind}`];
      const series = columns[greedy] ? [[greedy, "main"], [exploring, "second"]] : [[exploring, "main"]];
      const title = kind === "survival" ? "Survival, ticks" : "Return per episode";
      this.chart(`score ${series.length}`, title, series, this.grid, { wide: true, height: 260 });
    }
    const grouped = GROUPS.flatMap(([, group]) => group);
    for (const [title, group] of GROUPS) {
      const series = group.map((column, i) => [column, i ? "second" : "main"]);
      if (columns[group[0]]) this.chart(group[0], title, series, this.grid);
    }
    for (const column of Object.keys(columns)) {
      const late = LATE.includes(column);
      if (grouped.includes(column) || (ELSEWHERE.test(column) && !late)) continue;
      this.chart(column, capital(columnName(column)), [[column, "main"]], late || constant(columns[column]) ? this.more : this.grid);
    }
    this.moreBox.hidden = !this.more.children.length;
    for (const chart of this.charts.values()) chart.update(columns, this.members, this.meanings);
    this.node.dataset.drawn = this.tag;
  }

  chart(key, title, series, into, options) {
    if (this.charts.has(key)) return;
    if (key.startsWith("score") && this.charts.has("score 1")) {
      this.charts.get("score 1").node.remove();
      this.charts.get("score 1").close();
      this.charts.delete("score 1");
    }
    const chart = new Chart(title, series.map(([column, role]) => ({ column, role })), options);
    this.charts.set(key, chart);
    key.startsWith("score") ? into.prepend(chart.node) : into.append(chart.node);
  }

  showResults(run) {
    const links = run.pages.filter((p) => p.endsWith(".html")).map((p) => el("a", { class: "button", href: pageOf(run, p), target: "_blank" }, "Report"));
    const rows = Object.entries(run.policies ?? {}).filter(([, p]) => p && Number.isFinite(p.mean));
    const most = Math.max(1e-9, ...rows.map(([, p]) => Math.max(p.mean, p.high ?? 0)));
    const at = (v) => `${Math.max(0, Math.min(100, (100 * v) / most))}%`;
    const table = rows.map(([name, p]) => {
      const bar = el("td", { class: "bar" }, el("i"), el("em"));
      bar.firstChild.style.width = at(p.mean);
      if (Number.isFinite(p.low) && Number.isFinite(p.high)) {
        bar.lastChild.style.left = at(p.low);
        bar.lastChild.style.width = `calc(${at(p.high)} - ${at(p.low)})`;
      } else bar.lastChild.hidden = true;
      const interval = Number.isFinite(p.low) ? `${compact(p.low)} to ${compact(p.high)}` : "";
      const kind = name.startsWith("  ") ? "sub" : /^trained( without memory)?$/.test(name) ? "ours" : "";
      return el("tr", { class: kind }, el("th", {}, name), bar, el("td", { class: "number" }, compact(p.mean)), el("td", { class: "interval" }, interval));
    });
    const nothing = run.state === "evaluating" ? "The final evaluation is running." : "The final evaluation has not run yet.";
    fill(
      this.results,
      el("div", { class: "title" }, el("h2", {}, "Evaluation"), ...links),
      rows.length ? el("table", { class: "policies" }, el("tbody", {}, ...table)) : el("p", { class: "faint" }, nothing),
      rows.length ? el("p", { class: "faint" }, `Mean ${run.score_name} in unseen episodes, with its 95% interval.`) : null,
    );
  }

  showTime(run) {
    const phases = Object.entries(run.phases).filter(([, s]) => s > 0);
    const known = phases.reduce((sum, [, s]) => sum + s, 0);
    const whole = Math.max(known, run.seconds);
    if (whole > 1.005 * known) phases.push(["other", whole - known]);
    const bar = el("div", { class: "split" }, ...phases.map(([p, s]) => {
      const part = el("i", { class: p, title: `${PHASES[p] ?? p}: ${duration(s)}` });
      part.style.flexGrow = s / whole;
      return part;
    }));
    const list = phases.map(([p, s]) => el("li", { class: p }, el("i"), el("span", {}, PHASES[p] ?? p), el("b", {}, `${((100 * s) / whole).toFixed(0)}%`), el("em", {}, duration(s))));
    fill(this.time, el("h2", {}, "Where the time goes"), phases.length ? bar : el("p", { class: "faint" }, "No records yet."), el("ul", { class: "phases" }, ...list));
  }

  showMemory(run) {
    const picture = run.pages.includes("memory.png");
    this.memory.hidden = !run.memory && !picture;
    if (this.memory.hidden) return;
    fill(
      this.memory,
      el("h2", {}, "Does it use its memory?"),
      run.memory ? el("p", {}, run.memory) : null,
      picture ? el("img", { src: pageOf(run, "memory.png"), alt: "The memory probe", loading: "lazy" }) : null,
    );
  }

  showSettings(run) {
    const open = this.settings.querySelector("details")?.open ?? false;
    const changed = run.settings.filter((s) => s.value !== s.default);
    const row = (s) => el("tr", { title: s.meaning }, el("th", {}, s.name), el("td", {}, s.value), el("td", { class: "faint" }, s.meaning));
    const table = (rows) => el("div", { class: "scroll" }, el("table", { class: "settings" }, el("tbody", {}, ...rows.map(row))));
    fill(
      this.settings,
      el("h2", {}, "Settings"),
      changed.length ? table(changed) : el("p", { class: "faint" }, run.settings.length ? "All settings have their defaults." : "config.yaml cannot be read."),
      el("details", { open }, el("summary", {}, `All ${run.settings.length} settings`), table(run.settings)),
      run.unreadable ? el("p", { class: "faint" }, `${run.unreadable} lines of metrics.csv cannot be read.`) : null,
    );
  }
}

const pageOf = (run, name) => `/page?${new URLSearchParams({ run: run.name, page: name })}`;
const constant = (curve) => curve.members.every((values) => values.every((v) => v === null || v === values[0]));
const capital = (text) => text[0].toUpperCase() + text.slice(1);

// ---- navigation and refreshing --------------------------------------------------------------------------------------

function route() {
  const name = decodeURIComponent(location.hash.slice(2));
  page?.close();
  page = name ? new RunPage(name) : new ListPage();
  view.replaceChildren(page.node);
  window.scrollTo(0, 0);
  refresh();
}

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  const mine = page;
  let wait = 1000;
  if (!document.hidden) {
    try {
      wait = await mine.refresh();
      trouble.hidden = true;
    } catch (error) {
      if (!(error instanceof Failure) && !(error instanceof TypeError)) throw error;
      trouble.hidden = false;
      trouble.textContent = error instanceof Failure ? error.message : "The server does not answer. Is townlet serve still running?";
      wait = 3000;
    }
  }
  if (mine === page) timer = setTimeout(refresh, wait);
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const chosen = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  document.documentElement.dataset.theme = chosen === "dark" ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
}

if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
document.getElementById("theme").addEventListener("click", theme);
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
route();
