// Elements, numbers and requests: what the other files share. Text from runs becomes text nodes only, never markup.

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  fill(node, ...children);
  return node;
}

export function fill(node, ...children) {
  node.replaceChildren(...children.filter((c) => c !== null && c !== undefined));
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// 1234567 -> 1.23M; 0.0001234 -> 1.23e-4
export function compact(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= 0.9995 * unit && (unit > 1e3 || size >= 9999.5)) return `${trim((value / unit).toPrecision(3))}${name}`;
  }
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 1e-3) return value.toExponential(2);
  return trim(value.toPrecision(3));
}

const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export class Failure extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Returns {value, tag}, or null when what `tag` names is still current. Throws a Failure when the server answers with an
// error, and a TypeError when it does not answer.
export async function ask(path, query = {}, tag = null) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, {
    cache: "no-store",
    headers: tag ? { "If-None-Match": tag } : {},
  });
  if (response.status === 304) return null;
  const value = await response.json();
  if (!response.ok) throw new Failure(response.status, value.error ?? response.statusText);
  return { value, tag: response.headers.get("ETag") };
}

export const STATES = {
  training: "training",
  evaluating: "final evaluation",
  finished: "finished",
  stopped: "stopped",
  ended: "interrupted",
};

export function pill(state) {
  return el("span", { class: `pill ${state}` }, el("i"), STATES[state] ?? state);
}

export function columnName(column) {
  return COLUMN_NAMES[column] ?? column.replaceAll("_", " ");
}

const COLUMN_NAMES = {
  eval_survival: "survival, greedy",
  train_survival: "survival, exploring",
  eval_return: "return, greedy",
  train_return: "return, exploring",
  td_error: "TD error",
  td_error_max: "largest TD error",
  q: "Q-values",
  target: "TD target",
  q_max: "largest Q-value",
  h_norm: "h",
  c_norm: "c",
  clipped: "clipped gradients",
  replay_fill: "replay filled",
  grad_norm: "gradient norm",
  epsilon: "exploration (epsilon)",
  steps_per_s: "steps per second",
  updates_per_s: "updates per second",
  lr: "learning rate",
  clip_norm: "clipping norm",
  epsilon_end: "final epsilon",
  train_length: "episode length",
  episodes: "episodes per record",
  valid: "valid transitions",
};
