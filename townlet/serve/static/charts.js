// A line chart in SVG. Each series shows the mean over members with its 95% interval, and every member as a thin line.

import { columnName, compact, el, svg } from "./dom.js";

const PAD = { left: 52, right: 14, top: 10, bottom: 26 };

export class Chart {
  // `series` is [{column, role}]. The role is "main", or "second" for a line in the background without an interval.
  constructor(title, series, { height = 190, wide = false } = {}) {
    this.series = series;
    this.height = height;
    this.curves = {};
    this.members = true;
    this.plot = svg("svg", { class: "plot", height, role: "img", "aria-label": title });
    this.tip = el("div", { class: "tip", hidden: true });
    this.value = el("span", { class: "latest" });
    this.legend = el("span", { class: "legend" });
    this.note = el("span", { class: "note" });
    this.node = el(
      "figure",
      { class: `chart card${wide ? " wide" : ""}`, data: { chart: series[0].column } },
      el("figcaption", {}, el("strong", {}, title), this.legend, this.note, this.value),
      el("div", { class: "stage" }, this.plot, this.tip),
    );
    this.plot.addEventListener("pointermove", (e) => this.point(e));
    this.plot.addEventListener("pointerdown", (e) => this.point(e));
    this.plot.addEventListener("pointerleave", () => this.unpoint());
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.plot);
  }

  close() {
    this.observer.disconnect();
  }

  update(columns, members, meanings = {}) {
    this.meaning = this.series.map(({ column }) => meanings[column]).find((text) => text) ?? "";
    this.members = members;
    this.curves = {};
    for (const { column } of this.series) if (columns[column]) this.curves[column] = columns[column];
    this.node.hidden = Object.keys(this.curves).length === 0;
    if (!this.node.hidden) this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    const shown = this.series.filter(({ column }) => this.curves[column]);
    if (!width || !shown.length) return;
    const [xs, ys] = this.extent(shown);
    this.scale = scales(xs, ys, { width, height: this.height });
    const { x, y, log } = this.scale;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.plot.dataset.scale = JSON.stringify({ x: x.range, y: y.range, log, box: x.box.concat(y.box) });
    const parts = [this.grid()];
    for (const { column, role } of shown) {
      const curve = this.curves[column];
      const several = curve.members.length > 1;
      if (several && role === "main") parts.push(band(curve, x, y, column));
      if (several && this.members) {
        curve.members.forEach((member, p) => parts.push(line(curve.x, member, x, y, `member m${p % 8} ${role}`, column, p)));
      }
      parts.push(line(curve.x, curve.mean, x, y, `mean ${role}`, column, "mean"));
      if (role === "main" && curve.x.length <= 60) parts.push(dots(curve, x, y));
    }
    this.cursor = svg("g", { class: "cursor" });
    this.plot.replaceChildren(...parts, this.cursor);
    const lead = this.curves[shown[0].column];
    this.value.textContent = compact(lead.mean.at(-1));
    this.note.textContent = log ? "log scale" : "";
    const together = lead.together > 1 ? `; each point is the mean of ${lead.together} records` : "";
    this.node.firstChild.title = this.meaning + together;
    const legend = shown.length > 1 ? shown.map(({ column, role }) => el("span", { class: role }, el("i"), columnName(column).split(", ").at(-1))) : [];
    this.legend.replaceChildren(...legend);
  }

  extent(shown) {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { column, role } of shown) {
      const curve = this.curves[column];
      const lines = [curve.mean];
      if (this.members && curve.members.length > 1) lines.push(...curve.members);
      for (const values of lines) {
        for (const v of values) if (v !== null) [y0, y1] = [Math.min(y0, v), Math.max(y1, v)];
      }
      x0 = Math.min(x0, curve.x[0]);
      x1 = Math.max(x1, curve.x.at(-1));
    }
    return [[Math.min(0, x0), Math.max(x1, x0 + 1)], [y0, y1]];
  }

  grid() {
    const { x, y } = this.scale;
    const group = svg("g", { class: "grid" });
    for (const tick of y.ticks) {
      const at = y.at(tick).toFixed(1);
      group.append(svg("line", { x1: x.box[0], x2: x.box[1], y1: at, y2: at }));
      group.append(svg("text", { x: x.box[0] - 8, y: at, dy: "0.32em", "text-anchor": "end" }, short(tick)));
    }
    for (const tick of x.ticks) {
      const end = x.at(tick) > x.box[1] - 18;
      const place = { x: x.at(tick).toFixed(1), y: this.height - 6, "text-anchor": end ? "end" : "middle" };
      group.append(svg("text", place, short(tick)));
    }
    return group;
  }

  point(event) {
    if (!this.scale) return;
    const { x, y } = this.scale;
    const box = this.plot.getBoundingClientRect();
    const step = x.back(event.clientX - box.left);
    const rows = [];
    const marks = [];
    let at = null;
    for (const { column, role } of this.series) {
      const curve = this.curves[column];
      if (!curve) continue;
      const i = nearest(curve.x, step);
      at ??= curve.x[i];
      const half = curve.high[i] === null ? "" : ` ± ${compact(curve.high[i] - curve.mean[i])}`;
      const name = this.series.length > 1 ? `${columnName(column)}  ` : "";
      rows.push(el("div", { class: role }, el("i"), `${name}${compact(curve.mean[i])}${half}`));
      if (role === "main" && curve.members.length > 1 && this.members) {
        const each = curve.members.slice(0, 8).map((m, p) => el("span", { class: `m${p}` }, el("i"), compact(m[i])));
        rows.push(el("div", { class: "each" }, ...each));
      }
      if (curve.mean[i] !== null) marks.push(svg("circle", { cx: x.at(curve.x[i]), cy: y.at(curve.mean[i]), r: 4, class: role }));
    }
    if (at === null) return;
    const left = x.at(at);
    this.cursor.replaceChildren(svg("line", { x1: left, x2: left, y1: y.box[1], y2: y.box[0] }), ...marks);
    this.tip.replaceChildren(el("div", { class: "at" }, `step ${Math.round(at).toLocaleString("en")}`), ...rows);
    this.tip.hidden = false;
    const room = this.plot.clientWidth - this.tip.offsetWidth - 8;
    this.tip.style.left = `${Math.max(4, left + 14 > room ? left - this.tip.offsetWidth - 14 : left + 14)}px`;
  }

  unpoint() {
    this.tip.hidden = true;
    this.cursor?.replaceChildren();
  }
}

// The small curve on a card of the list.
export function spark(curve, width = 260, height = 56) {
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (!curve || curve.x.length < 2) return node;
  const known = curve.mean.filter((v) => v !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = linear([curve.x[0], curve.x.at(-1)], [0, width]);
  const y = linear([low, high > low ? high : low + 1], [height - 4, 6]);
  const d = path(curve.x, curve.mean, x, y);
  node.append(svg("path", { class: "area", d: `${d}L${width} ${height}L0 ${height}Z` }), svg("path", { class: "line", d }));
  return node;
}

function scales(xs, ys, { width, height }) {
  const box = { x: [PAD.left, width - PAD.right], y: [height - PAD.bottom, PAD.top] };
  let [low, high] = ys;
  const log = low > 0 && high / low > 60;
  if (log) {
    const range = [Math.log10(low) - 0.05, Math.log10(high) + 0.05];
    const inner = linear(range, box.y);
    const decades = [];
    for (let e = Math.ceil(range[0]); e <= range[1]; e += Math.ceil((range[1] - range[0]) / 4)) decades.push(10 ** e);
    const y = { at: (v) => inner.at(Math.log10(Math.max(v, 10 ** range[0]))), range, box: box.y, ticks: decades };
    return { x: xAxis(xs, box.x), y, log };
  }
  if (low >= 0 && low < 0.4 * high) low = 0;
  if (high === low) [low, high] = [low - Math.max(1e-9, Math.abs(low) * 0.1), high + Math.max(1e-9, Math.abs(high) * 0.1)];
  else high += 0.04 * (high - low);
  const y = { ...linear([low, high], box.y), box: box.y, ticks: nice(low, high, 5) };
  return { x: xAxis(xs, box.x), y, log };
}

function xAxis(xs, box) {
  return { ...linear(xs, box), box, ticks: nice(xs[0], xs[1], Math.max(2, Math.floor((box[1] - box[0]) / 110))) };
}

function linear(range, box) {
  const factor = (box[1] - box[0]) / (range[1] - range[0]);
  return { range, at: (v) => box[0] + (v - range[0]) * factor, back: (p) => range[0] + (p - box[0]) / factor };
}

// About n round numbers in [low, high].
function nice(low, high, n) {
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function path(xs, values, x, y) {
  let d = "";
  for (let i = 0; i < xs.length; i++) {
    if (values[i] === null) continue;
    d += `${d ? "L" : "M"}${x.at(xs[i]).toFixed(2)} ${y.at(values[i]).toFixed(2)}`;
  }
  return d;
}

function line(xs, values, x, y, kind, column, member) {
  return svg("path", { class: `line ${kind}`, d: path(xs, values, x, y), "data-column": column, "data-member": member });
}

function dots(curve, x, y) {
  const group = svg("g", { class: "dots" });
  curve.x.forEach((step, i) => {
    if (curve.mean[i] !== null) group.append(svg("circle", { cx: x.at(step).toFixed(2), cy: y.at(curve.mean[i]).toFixed(2), r: 2.4 }));
  });
  return group;
}

function band(curve, x, y, column) {
  const clamp = (v) => Math.min(y.box[0], Math.max(y.box[1], y.at(v)));
  const known = curve.x.map((_, i) => i).filter((i) => curve.low[i] !== null);
  const upper = known.map((i) => `${x.at(curve.x[i]).toFixed(2)} ${clamp(curve.high[i]).toFixed(2)}`);
  const lower = known.map((i) => `${x.at(curve.x[i]).toFixed(2)} ${clamp(curve.low[i]).toFixed(2)}`).reverse();
  return svg("path", { class: "band", d: known.length ? `M${upper.concat(lower).join("L")}Z` : "", "data-column": column });
}

// The number beside a tick. It is short: "5k", where a value would be shown as "5,000".
const short = (v) => (Math.abs(v) >= 1000 && Math.abs(v) < 1e4 ? `${v / 1000}k` : compact(v));

function nearest(xs, value) {
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle;
    else high = middle;
  }
  return value - xs[low] < xs[high] - value ? low : high;
}
