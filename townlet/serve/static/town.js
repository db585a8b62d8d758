// The Town on a canvas: what the agent sees now, what it has seen, and, dimmed by fog, what it has not seen yet.

const COLOURS = {
  Bed: "#5c6bc0", LuxuryBed: "#5c6bc0", Shower: "#26a6be", HomeMeal: "#ef8a3c", FastFood: "#ef8a3c", Job: "#796254",
  Labor: "#796254", Gym: "#58a058", Bar: "#ca5496", Park: "#58a058", Recreation: "#ca5496", Therapist: "#d64848",
  Doctor: "#d64848", Hospital: "#d64848",
};

// Icons in a box of 24 x 24: [path, filled].
const ICONS = {
  Bed: [["M3 6v13M3 16h18v3M21 16v-2.5a3 3 0 0 0-3-3H11V16", 0], ["M5 11.2a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0z", 1]],
  LuxuryBed: [["M3 8v11M3 16h18v3M21 16v-2.5a3 3 0 0 0-3-3H11V16", 0], ["M5 12a2 2 0 1 0 4 0a2 2 0 1 0-4 0zM15.5 2l1.2 2.5 2.8.4-2 2 .5 2.7-2.5-1.3-2.5 1.3.5-2.7-2-2 2.8-.4z", 1]],
  Shower: [["M4 21V6.5A3.5 3.5 0 0 1 11 6.5V8M7 8h8M9 12v1.5M13 12v1.5M7.8 16.5V18M14.2 16.5V18M11 16v2", 0]],
  HomeMeal: [["M4 12h16a8 8 0 0 1-5 7H9a8 8 0 0 1-5-7zM9 3.5c-1.5 1.6 1.5 3 0 5M13 3.5c-1.5 1.6 1.5 3 0 5", 0]],
  FastFood: [["M4 10a8 5.5 0 0 1 16 0zM3.5 13.5h17M4 17h16a3 3 0 0 1-3 3H7a3 3 0 0 1-3-3z", 0]],
  Job: [["M3.5 8h17v11.5h-17zM9 8V5h6v3M3.5 13h17M12 12v2.4", 0]],
  Labor: [["M14 4.5l5.5 5.5M16.7 7.3L6 18l-2 2M9.5 4.5C13 3 17 4 19 7s2 6 .5 8.5", 0]],
  Gym: [["M8 12h8M5.5 7.5v9M8 6v12M16 6v12M18.5 7.5v9M3.5 10.5v3M20.5 10.5v3", 0]],
  Bar: [["M5 4h14l-7 8zM12 12v7.5M8 20h8M8 7.5h8", 0]],
  Park: [["M12 13v8M8 21h8M12 3a5 5 0 0 0-5 5 4 4 0 0 0 1 8h8a4 4 0 0 0 1-8 5 5 0 0 0-5-5z", 0]],
  Recreation: [["M4 15a8 8 0 1 1 16 0M4 15a2.7 2.7 0 0 1 5.3 0 2.7 2.7 0 0 1 5.4 0 2.7 2.7 0 0 1 5.3 0M12 7V5M12 14v5a2 2 0 0 0 4 0", 0]],
  Therapist: [["M4 5h16v10h-7l-4 4v-4H4zM8.5 10h.01M12 10h.01M15.5 10h.01", 0]],
  Doctor: [["M6 4v5a4 4 0 0 0 8 0V4M10 13v2a5 5 0 0 0 8.5 3.5V15", 0], ["M16.5 13a2 2 0 1 0 4 0a2 2 0 1 0-4 0z", 1]],
  Hospital: [["M9.5 4h5v5.5H20v5h-5.5V20h-5v-5.5H4v-5h5.5z", 0]],
};

const PATHS = Object.fromEntries(
  Object.entries(ICONS).map(([name, parts]) => [name, parts.map(([d, fill]) => [new Path2D(d), fill])]),
);
const [UNSEEN, SOMETHING] = [-1, -3];
const LOOK = [[0, -1], [0, 1], [-1, 0], [1, 0], [0, 0.5], [0, 0]]; // up, down, left, right, interact, wait


export function isOpen(town, building, hour) {
  if (!town.temporal) return true;
  const span = (((building.closes - building.opens) % 24) + 24) % 24 || 24;
  return (((hour - building.opens) % 24) + 24) % 24 < span;
}

// How light it is: 0 at midnight and 1 at noon, with long days.
export const daylight = (hour) => Math.min(1, Math.max(0, 0.5 + 0.9 * Math.sin((2 * Math.PI * (hour - 6)) / 24)));

export class TownCanvas {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.trail = [];
    new ResizeObserver(() => this.draw(1)).observe(canvas);
  }

  begin(town) {
    this.town = town;
    this.trail = [];
    this.frame = this.before = null;
  }

  // Shows a frame. The agent glides to its place within `glide` milliseconds.
  show(frame, glide = 0) {
    this.before = this.frame && frame.t === this.frame.t + 1 ? this.frame : frame;
    this.frame = frame;
    this.trail.push([frame.x, frame.y]);
    this.trail.splice(0, this.trail.length - 14);
    this.canvas.dataset.shows = "";
    cancelAnimationFrame(this.waiting);
    if (glide < 20) return this.draw(1);
    const begun = performance.now();
    const tick = (now) => {
      const share = Math.min(1, (now - begun) / glide);
      this.draw(share);
      if (share < 1) this.waiting = requestAnimationFrame(tick);
    };
    this.waiting = requestAnimationFrame(tick);
  }

  draw(share) {
    if (!this.frame || !this.canvas.clientWidth) return;
    const { canvas, pen, town, frame, before } = this;
    const side = canvas.clientWidth;
    const dense = Math.min(3, window.devicePixelRatio || 1);
    if (canvas.width !== Math.round(side * dense)) canvas.width = canvas.height = Math.round(side * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    const margin = 8;
    this.cell = (side - 2 * margin) / town.size;
    const eased = share * share * (3 - 2 * share);
    const at = [before.x + (frame.x - before.x) * eased, before.y + (frame.y - before.y) * eased];
    const light = daylight(before.hour) + (daylight(frame.hour) - daylight(before.hour)) * share;
    pen.clearRect(0, 0, side, side);
    pen.fillStyle = mix("#232a45", "#8fa878", light);
    pen.beginPath();
    pen.roundRect(0, 0, side, side, 14);
    pen.fill();
    pen.save();
    pen.translate(margin, margin);
    this.ground(light, at);
    for (const building of town.buildings) this.building(building, light);
    this.path();
    this.sight(at, light);
    this.agent(at, light);
    pen.restore();
    canvas.dataset.shows = share < 1 ? "" : frame.t;
  }

  // What the agent could know of a cell: the kind of building on it, or one of the values above.
  seen(x, y) {
    return this.frame.seen[y * this.town.size + x];
  }

  sees(x, y) {
    const r = this.town.sight;
    return r === null || Math.max(Math.abs(x - this.frame.x), Math.abs(y - this.frame.y)) <= r;
  }

  ground(light, at) {
    const { pen, cell, town } = this;
    const bright = [mix("#46507a", "#cfe2b4", light), mix("#414a73", "#c6dba9", light)];
    const fog = [mix("#2a3152", "#a3b48c", light), mix("#282f4f", "#9fb088", light)];
    for (let y = 0; y < town.size; y++) {
      for (let x = 0; x < town.size; x++) {
        const [known, seen] = [this.seen(x, y) !== UNSEEN, this.sees(x, y)];
        let colour = (known ? bright : fog)[(x + y) % 2];
        if (known && !seen) colour = mix(colour, light < 0.5 ? "#262d4b" : "#8b9c78", 0.3);
        pen.fillStyle = colour;
        pen.beginPath();
        pen.roundRect(x * cell + 1, y * cell + 1, cell - 2, cell - 2, cell * 0.1);
        pen.fill();
        if (known) this.grass(x, y, light);
        else this.mist(x, y, light);
      }
    }
    const glow = pen.createRadialGradient((at[0] + 0.5) * cell, (at[1] + 0.5) * cell, 0, (at[0] + 0.5) * cell, (at[1] + 0.5) * cell, cell * 2.2);
    glow.addColorStop(0, `rgba(255, 214, 120, ${0.3 * (1 - light)})`);
    glow.addColorStop(1, "rgba(255, 214, 120, 0)");
    pen.fillStyle = glow;
    pen.fillRect(0, 0, cell * town.size, cell * town.size);
  }

  grass(x, y, light) {
    const { pen, cell } = this;
    pen.strokeStyle = mix("#59648f", "#a9c586", light);
    pen.lineWidth = Math.max(1, cell * 0.025);
    pen.beginPath();
    for (let i = 0; i < 3; i++) {
      const [u, v] = [hash(x, y, i), hash(y, x, i + 7)];
      const [px, py] = [(x + 0.15 + 0.7 * u) * cell, (y + 0.2 + 0.65 * v) * cell];
      pen.moveTo(px, py);
      pen.lineTo(px + cell * 0.02, py - cell * 0.06);
      pen.moveTo(px + cell * 0.04, py);
      pen.lineTo(px + cell * 0.07, py - cell * 0.05);
    }
    pen.stroke();
  }

  mist(x, y, light) {
    const { pen, cell } = this;
    pen.fillStyle = mix("#323a5e", "#b1c19b", light);
    for (let i = 0; i < 2; i++) {
      pen.beginPath();
      pen.ellipse((x + 0.25 + 0.5 * hash(x, y, i)) * cell, (y + 0.3 + 0.4 * i) * cell, cell * 0.17, cell * 0.055, 0, 0, 7);
      pen.fill();
    }
  }

  building(b, light) {
    const { pen, cell } = this;
    const [x, y, inset] = [b.x * cell, b.y * cell, cell * 0.09];
    const size = cell - 2 * inset;
    if (this.seen(b.x, b.y) === UNSEEN) {
      pen.strokeStyle = mix("#5a6390", "#7d8c69", light);
      pen.lineWidth = Math.max(1, cell * 0.025);
      pen.setLineDash([cell * 0.07, cell * 0.06]);
      pen.beginPath();
      pen.roundRect(x + inset, y + inset, size, size, cell * 0.16);
      pen.stroke();
      pen.setLineDash([]);
      this.icon(b.name, x + cell / 2, y + cell / 2, cell * 0.4, pen.strokeStyle);
      return;
    }
    const strange = this.seen(b.x, b.y) === SOMETHING; // the agent saw a building from afar, but not which one
    const open = isOpen(this.town, b, this.frame.hour);
    let colour = mix(COLOURS[b.name] ?? "#777777", "#1b2036", 0.22 * (1 - light));
    if (!open || strange) colour = mix(colour, strange ? "#8a8578" : "#6c6f7c", strange ? 0.8 : 0.72);
    pen.fillStyle = mix(colour, "#000000", 0.32);
    pen.beginPath();
    pen.roundRect(x + inset, y + inset + cell * 0.045, size, size, cell * 0.17);
    pen.fill();
    const shine = pen.createLinearGradient(0, y + inset, 0, y + cell - inset);
    shine.addColorStop(0, mix(colour, "#ffffff", 0.16));
    shine.addColorStop(1, colour);
    pen.fillStyle = shine;
    pen.beginPath();
    pen.roundRect(x + inset, y + inset, size, size, cell * 0.17);
    pen.fill();
    const here = this.frame.x === b.x && this.frame.y === b.y;
    const chalk = open && !strange ? "#ffffff" : "#d6d7dd";
    if (!here) this.icon(b.name, x + cell / 2, y + cell * (cell > 46 ? 0.44 : 0.5), cell * 0.46, chalk);
    if (cell > 46) {
      pen.fillStyle = chalk;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      const words = strange ? "?" : open ? b.name : `opens at ${b.opens}`;
      pen.font = `600 ${Math.min(cell * 0.15, (cell * 1.05) / words.length, 14)}px system-ui, sans-serif`;
      pen.fillText(words, x + cell / 2, y + cell * 0.81);
    }
  }

  icon(name, x, y, size, colour) {
    const { pen } = this;
    pen.save();
    pen.translate(x - size / 2, y - size / 2);
    pen.scale(size / 24, size / 24);
    pen.lineWidth = 1.9;
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = pen.fillStyle = colour;
    for (const [shape, fill] of PATHS[name] ?? []) fill ? pen.fill(shape) : pen.stroke(shape);
    pen.restore();
  }

  path() {
    const { pen, cell, trail } = this;
    trail.slice(0, -1).forEach(([x, y], i) => {
      pen.fillStyle = `rgba(255, 250, 235, ${(0.5 * (i + 1)) / trail.length})`;
      pen.beginPath();
      pen.arc((x + 0.5) * cell, (y + 0.5) * cell, cell * 0.05, 0, 7);
      pen.fill();
    });
  }

  sight([ax, ay], light) {
    const { pen, cell, town } = this;
    if (town.sight === null) return;
    const [x0, y0] = [Math.max(0, ax - town.sight), Math.max(0, ay - town.sight)];
    const [x1, y1] = [Math.min(town.size, ax + town.sight + 1), Math.min(town.size, ay + town.sight + 1)];
    pen.strokeStyle = mix("#ffd65a", "#fff6d0", light * 0.4);
    pen.lineWidth = Math.max(2, cell * 0.04);
    pen.shadowColor = "rgba(255, 206, 74, 0.9)";
    pen.shadowBlur = 10;
    pen.beginPath();
    pen.roundRect(x0 * cell + 1, y0 * cell + 1, (x1 - x0) * cell - 2, (y1 - y0) * cell - 2, cell * 0.16);
    pen.stroke();
    pen.shadowBlur = 0;
  }

  agent([ax, ay], light) {
    const { pen, cell, frame, town } = this;
    const under = town.buildings.find((b) => b.x === frame.x && b.y === frame.y);
    const r = cell * 0.24;
    const [x, y] = [(ax + 0.5) * cell, (ay + (under && cell > 46 ? 0.42 : 0.5)) * cell];
    const of = (name) => frame.meters[town.meters.indexOf(name)];
    const worst = Math.min(of("energy"), of("health"), of("satiation"));
    const dead = frame.over && frame.ending !== "reached the cap";
    const asleep = !dead && under?.name.endsWith("Bed") && frame.next === 4;
    pen.fillStyle = `rgba(0, 0, 0, ${0.18 + 0.1 * light})`;
    pen.beginPath();
    pen.ellipse(x, y + r * 1.02, r * 0.85, r * 0.26, 0, 0, 7);
    pen.fill();
    const skin = dead ? "#b4b4ba" : mix("#e25c42", "#ffce4a", Math.min(1, worst / 0.6));
    const body = pen.createRadialGradient(x - r * 0.35, y - r * 0.4, r * 0.1, x, y, r);
    body.addColorStop(0, mix(skin, "#ffffff", 0.45));
    body.addColorStop(1, skin);
    pen.fillStyle = body;
    pen.strokeStyle = "#3a3226";
    pen.lineWidth = Math.max(1.2, r * 0.12);
    pen.beginPath();
    pen.arc(x, y, r, 0, 7);
    pen.fill();
    pen.stroke();
    this.face(x, y, r, { dead, asleep, glad: worst >= 0.3 });
    if (under && frame.progress) {
      pen.lineWidth = r * 0.24;
      pen.strokeStyle = "rgba(255, 255, 255, 0.55)";
      pen.beginPath();
      pen.arc(x, y, r * 1.38, 0, 7);
      pen.stroke();
      pen.strokeStyle = "#5fd17a";
      pen.lineCap = "round";
      pen.beginPath();
      pen.arc(x, y, r * 1.38, -Math.PI / 2, -Math.PI / 2 + (2 * Math.PI * frame.progress) / under.ticks);
      pen.stroke();
      pen.lineCap = "butt";
    }
    if (asleep) {
      pen.fillStyle = "#ffffff";
      pen.textAlign = "left";
      pen.font = `700 ${r * 0.75}px system-ui, sans-serif`;
      pen.fillText("z", x + r * 0.9, y - r * 0.75);
      pen.font = `700 ${r * 0.55}px system-ui, sans-serif`;
      pen.fillText("z", x + r * 1.35, y - r * 1.15);
    }
  }

  face(x, y, r, { dead, asleep, glad }) {
    const { pen, frame } = this;
    const [dx, dy] = LOOK[frame.next ?? 5];
    pen.strokeStyle = pen.fillStyle = "#3a3226";
    pen.lineWidth = Math.max(1, r * 0.13);
    pen.lineCap = "round";
    for (const side of [-1, 1]) {
      const [ex, ey] = [x + side * r * 0.36 + dx * r * 0.2, y - r * 0.14 + dy * r * 0.2];
      pen.beginPath();
      if (dead) {
        const k = r * 0.13;
        pen.moveTo(ex - k, ey - k);
        pen.lineTo(ex + k, ey + k);
        pen.moveTo(ex + k, ey - k);
        pen.lineTo(ex - k, ey + k);
        pen.stroke();
      } else if (asleep) {
        pen.arc(ex, ey, r * 0.15, 0.15, Math.PI - 0.15);
        pen.stroke();
      } else {
        pen.ellipse(ex, ey, r * 0.11, r * 0.16, 0, 0, 7);
        pen.fill();
      }
    }
    pen.beginPath();
    if (glad && !dead) pen.arc(x + dx * r * 0.14, y + r * 0.14, r * 0.38, 0.25 * Math.PI, 0.75 * Math.PI);
    else pen.arc(x + dx * r * 0.14, y + r * 0.72, r * 0.34, 1.27 * Math.PI, 1.73 * Math.PI);
    pen.stroke();
    pen.lineCap = "butt";
  }
}

// The colour "#rrggbb" mixed with `share` of another. It also takes a colour that it returned before.
function mix(a, b, share) {
  const [p, q] = [numbers(a), numbers(b)];
  return `rgb(${p.map((v, i) => Math.round(v + (q[i] - v) * share)).join(", ")})`;
}

function numbers(colour) {
  if (colour.startsWith("rgb")) return colour.match(/\d+/g).map(Number);
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// A pseudo-random number in [0, 1) that is always the same for the same place.
function hash(x, y, i) {
  const s = Math.sin(x * 127.1 + y * 311.7 + i * 74.7) * 43758.5453;
  return s - Math.floor(s);
}
