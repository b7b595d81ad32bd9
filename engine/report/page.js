"use strict";
// Everything shown comes from the JSON in the page and goes in as text, never as markup: names are hostile.
const data = JSON.parse(document.getElementById("data").textContent);
const { totals, point, thresholds, plane, entries, provenance, classes, bags, sample } = data;
const SVG = "http://www.w3.org/2000/svg";
const VERDICTS = ["threat", "harmless", "unsure"];
const HEAT = [214, 0, 127];
const STEPS = thresholds.over.length - 1;
const BINS = 120;
const THUMBNAIL_NAME = 40;

const byId = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString("en");
const number = (value, digits = 4) => (value === null ? "none" : Number(value).toPrecision(digits));
const scoreText = (value) => (Math.abs(value) < 0.001 ? value.toFixed(4) : number(value));
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

// Control, format and separator characters are written out: none of them can hide or reorder a name.
function legible(text) {
  const hidden = (c) => `\\u{${c.codePointAt(0).toString(16)}}`;
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, hidden);
}

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const name = (text) => element("bdi", { class: "name" }, legible(text));

// --- the operating point ---

const at = (step) => thresholds.low + ((thresholds.high - thresholds.low) * step) / STEPS;
const scanStep = ((point.threshold - thresholds.low) / (thresholds.high - thresholds.low)) * STEPS;
let step = null; // null: the scan's own threshold

const threshold = () => (step === null ? point.threshold : at(step));
const isAlarm = (entry) => (step === null ? entry.alarm : entry.score >= at(step));
const alarms = () => (step === null ? totals.alarms : thresholds.over[step]);

function bars() {
  const width = STEPS / BINS;
  const heights = [];
  for (let bin = 0; bin < BINS; bin++) {
    heights.push(thresholds.over[bin * width] - thresholds.over[(bin + 1) * width]);
  }
  const tallest = Math.log1p(Math.max(1, ...heights));
  return heights.map((each) => (114 * Math.log1p(each)) / tallest);
}

const heights = bars();

function drawPoint() {
  const position = step === null ? scanStep : step;
  const width = STEPS / BINS;
  const paths = { below: "", above: "" };
  heights.forEach((high, bin) => {
    const from = bin * width;
    const split = Math.min(Math.max(position, from), from + width);
    for (const [kind, left, right] of [["below", from, split], ["above", split, from + width]]) {
      if (high && right > left) paths[kind] += `M${left} 120V${120 - high}H${right}V120Z`;
    }
  });
  const line = (kind, x) => drawn("line", { class: kind, x1: x, x2: x, y1: 0, y2: 120 });
  byId("bars").replaceChildren(
    drawn("path", { class: "below", d: paths.below }),
    drawn("path", { class: "above", d: paths.above }),
    line("scan", scanStep),
    line("now", position),
  );
  const slider = byId("threshold");
  slider.value = Math.round(position);
  slider.setAttribute("aria-valuetext", `${number(threshold())}, ${plural(alarms(), "alarm")}`);
  readOut();
  byId("reset").disabled = step === null;
}

function readOut() {
  const share = totals.scored ? alarms() / totals.scored : 0;
  byId("readout").replaceChildren(
    element("strong", {}, plural(alarms(), "alarm")),
    ` (${percent(share)} of ${count(totals.scored)} scored) at a score of ${number(threshold())} or above. `,
    expected(),
  );
}

// False alarms that harmless bags alone would give, by the model's calibration.
function expected() {
  if (step !== null && thresholds.benign === null) {
    return "Expected false alarms are unknown here: the model of this scan is not at hand (--model).";
  }
  const share = step === null ? point.pfa : thresholds.benign[step];
  const rare = thresholds.smallest !== null && share < thresholds.smallest;
  const most = rare ? thresholds.smallest : share;
  const bags = Math.round(most * totals.scored);
  return `If all of them were harmless: ${rare ? "under" : "about"} ${plural(bags, "false alarm")} ` +
    `(PFA ${rare ? "under " : ""}${percent(most, 2)}).`;
}

function movePoint(to) {
  step = to === null ? null : Math.min(STEPS, Math.max(0, Math.round(to)));
  drawPoint();
  drawBoundary();
  drawMarks();
  list();
}

function setUpPoint() {
  byId("low").textContent = number(thresholds.low, 3);
  byId("high").textContent = number(thresholds.high, 3);
  const outside = [totals.scored - thresholds.over[0], thresholds.over[STEPS]];
  const words = [["lower", outside[0]], ["higher", outside[1]]].filter(([, many]) => many > 0);
  byId("beyond").textContent = words.map(([side, many]) => `${plural(many, "image")} score ${side} than the axis`).join("; ");
  const svg = byId("bars");
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    movePoint(((event.clientX - box.left) / box.width) * STEPS);
  };
  svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); follow(event); });
  svg.addEventListener("pointermove", (event) => { if (svg.hasPointerCapture(event.pointerId)) follow(event); });
  byId("threshold").addEventListener("input", (event) => movePoint(Number(event.target.value)));
  byId("reset").addEventListener("click", () => movePoint(null));
}

// --- the plane of the two losses ---

const onPlane = (losses) => {
  if (plane === null || losses.some((loss) => loss === null)) return null;
  const [x, y] = losses.map((loss) => Math.log10(Math.max(loss, 1e-12)));
  const across = ((x - plane.x[0]) / (plane.x[1] - plane.x[0])) * plane.wide;
  const up = ((y - plane.y[0]) / (plane.y[1] - plane.y[0])) * plane.high;
  if (across < 0 || across > plane.wide || up < 0 || up > plane.high) return null;
  return [across, plane.high - up];
};

function setUpPlane() {
  if (plane === null) {
    byId("plane").textContent = "No image was scored.";
    return;
  }
  const svg = drawn("svg", { viewBox: `0 0 ${plane.wide} ${plane.high}`, role: "img" });
  svg.setAttribute("aria-label", "Images by reconstruction loss, to the right, and feature matching loss, upwards");
  const most = Math.log1p(Math.max(...plane.counts));
  const levels = Array.from({ length: 6 }, () => "");
  plane.cells.forEach((cell, k) => {
    const x = Math.floor(cell / plane.high), y = plane.high - 1 - (cell % plane.high);
    levels[Math.min(5, Math.floor((6 * Math.log1p(plane.counts[k])) / (most + 1e-9)))] += `M${x} ${y}h1v1h-1Z`;
  });
  levels.forEach((d, level) => svg.append(drawn("path", { class: "cell", d, opacity: 0.15 + 0.14 * level })));
  svg.append(drawn("path", { class: "boundary", id: "boundary" }), drawn("g", { id: "marks" }));
  const loss = (value) => number(10 ** value, 3);
  byId("plane").replaceChildren(
    svg,
    element("div", { class: "axis" }, element("span", {}, loss(plane.x[0])),
      element("span", {}, "reconstruction loss, logarithmic"), element("span", {}, loss(plane.x[1]))),
  );
  const words = [`Upwards the feature matching loss, ${loss(plane.y[0])} to ${loss(plane.y[1])}.`];
  words.push("Squares count all images; dots are those of the gallery, filled where they alarm.");
  if (plane.scores) words.push("The line is where the decision alarms.");
  else if (point.decision === "gbad") words.push("The decision's line needs its model (--model).");
  else words.push(`The decision '${point.decision}' looks at class scores too, so no line divides this plane.`);
  if (plane.beyond) words.push(`${plural(plane.beyond, "image")} beyond the edges.`);
  byId("plane-note").textContent = words.join(" ");
}

// Where scores between the middles of cells cross the threshold: marching squares, in straight pieces.
function drawBoundary() {
  if (plane === null || !plane.scores) return;
  const score = (x, y) => plane.scores[x * plane.high + y] - threshold();
  let d = "";
  for (let x = 0; x + 1 < plane.wide; x++) {
    for (let y = 0; y + 1 < plane.high; y++) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const crossings = [];
      corners.forEach((from, k) => {
        const to = corners[(k + 1) % 4];
        const a = score(...from), b = score(...to);
        if (a < 0 === b < 0) return;
        const part = a / (a - b);
        crossings.push([from[0] + part * (to[0] - from[0]) + 0.5, plane.high - (from[1] + part * (to[1] - from[1]) + 0.5)]);
      });
      for (let k = 0; k + 1 < crossings.length; k += 2) d += `M${crossings[k].join(" ")}L${crossings[k + 1].join(" ")}`;
    }
  }
  byId("boundary").setAttribute("d", d);
}

function drawMarks() {
  if (plane === null) return;
  const marks = entries.flatMap((entry) => {
    const spot = onPlane(entry.losses);
    if (spot === null) return [];
    const kinds = [isAlarm(entry) ? "alarm" : "", entry === chosen ? "chosen" : ""].join(" ");
    const mark = drawn("circle", { class: kinds, cx: spot[0], cy: spot[1], r: 0.8 });
    mark.addEventListener("click", () => choose(entry, true));
    return [mark];
  });
  byId("marks").replaceChildren(...marks);
}

// --- verdicts ---

const KEY = `gbad-batch verdicts ${provenance.scan_id}`;
let verdicts = {};
try {
  verdicts = JSON.parse(localStorage.getItem(KEY)) || {};
} catch {
  // the page cannot keep anything here: verdicts last until it is closed, and can still be downloaded
}

const verdictOf = (entry) => {
  const verdict = verdicts[entry.sha256]?.verdict;
  return VERDICTS.includes(verdict) ? verdict : null;
};

function judge(entry, verdict) {
  if (verdict === null) delete verdicts[entry.sha256];
  else verdicts[entry.sha256] = { verdict, time: new Date().toISOString() };
  try {
    localStorage.setItem(KEY, JSON.stringify(verdicts));
  } catch {
    // as above
  }
  list();
  show();
}

function verdictTable() {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const drawn = sample ? [sample.drawn] : []; // verdicts say what sample they are of
  const lines = [["sha256", "uri", "verdict", "time", ...(sample ? ["sample"] : [])].join(",")];
  for (const entry of entries) {
    if (!verdictOf(entry)) continue;
    const { verdict, time } = verdicts[entry.sha256];
    for (const view of [entry, ...entry.views]) { // a verdict on a bag holds for all its views
      if (view.sha256) lines.push([view.sha256, quoted(view.uri), verdict, quoted(time), ...drawn].join(","));
    }
  }
  return `${lines.join("\r\n")}\r\n`;
}

function download() {
  const link = element("a", { download: `verdicts-${provenance.scan_id.slice(0, 12)}.csv` });
  link.href = URL.createObjectURL(new Blob([verdictTable()], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- the gallery ---

let chosen = null;
let shownEntries = [];
let heat = false;
let heatClass = null; // null: the most probable class at each place
const tiles = new Map(); // by entry

const best = (entry) => Math.max(...entry.p.map((p) => p ?? 0));
const SORTS = {
  score: (a, b) => b.score - a.score,
  p: (a, b) => classProbability(b) - classProbability(a),
  reconstruction: (a, b) => (b.losses[0] ?? -1) - (a.losses[0] ?? -1),
  matching: (a, b) => (b.losses[1] ?? -1) - (a.losses[1] ?? -1),
  uri: (a, b) => (a.uri < b.uri ? -1 : a.uri > b.uri ? 1 : 0),
};

function classProbability(entry) {
  const which = classes.indexOf(byId("class").value);
  return which < 0 ? best(entry) : entry.p[which] ?? 0;
}

const overThreshold = (entry, k) => entry.p[k] !== null && entry.p[k] >= Math.fround(point.class_thresholds[k]);

function passes(entry) {
  const wanted = byId("find").value.toLowerCase();
  const names = [entry.uri, entry.bag ?? "", ...entry.places, ...entry.views.map((view) => view.uri)];
  if (wanted && !names.some((uri) => uri.toLowerCase().includes(wanted))) return false;
  const which = classes.indexOf(byId("class").value);
  if (which >= 0 && !overThreshold(entry, which)) return false;
  const verdict = byId("verdict").value;
  if (verdict && (verdictOf(entry) ?? "none") !== verdict) return false;
  const kind = byId("which").value;
  return !((kind === "alarm" && !isAlarm(entry)) || (kind === "gone" && !entry.gone));
}

function tile(entry) {
  if (!tiles.has(entry)) {
    const onfocus = () => entry !== chosen && choose(entry);
    const button = element("button", { type: "button", onfocus, onclick: () => choose(entry, true) });
    tiles.set(entry, { item: element("li", {}, button), button });
  }
  const { item, button } = tiles.get(entry);
  const verdict = verdictOf(entry);
  const state = `${isAlarm(entry)}|${verdict}|${entry === chosen}`;
  if (button.dataset.state === state) return item;
  button.dataset.state = state;
  if (!button.firstChild) {
    const frame = entry.picture
      ? element("img", { src: entry.picture, alt: "", loading: "lazy", decoding: "async" })
      : element("span", {}, entry.gone ?? "no picture");
    button.append(element("span", { class: "frame" }, frame), element("span", { class: "facts" }));
  }
  button.setAttribute("aria-current", String(entry === chosen));
  const tag = verdict ? element("span", { class: `tag ${verdict}` }, verdict) : "";
  const score = element("span", { class: isAlarm(entry) ? "alarm-text" : "" }, `${isAlarm(entry) ? "alarm " : ""}${scoreText(entry.score)}`);
  const likely = classes[entry.p.indexOf(best(entry))];
  const last = legible((entry.bag ?? entry.uri).split(/[/!]/).pop());
  const many = bags ? plural(entry.copies, "view") : `×${count(entry.copies)}`;
  button.lastChild.replaceChildren(
    element("span", { class: "line" }, score, tag),
    element("span", { class: "line quiet" },
      element("span", {}, `${likely ?? ""} ${best(entry).toFixed(2)}`), element("span", {}, entry.copies > 1 ? many : "")),
    element("bdi", { class: "name", title: legible(entry.uri) }, last.length > THUMBNAIL_NAME ? `…${last.slice(-THUMBNAIL_NAME)}` : last),
  );
  return item;
}

function list() {
  shownEntries = entries.filter(passes).sort(SORTS[byId("sort").value]);
  const items = shownEntries.map(tile);
  const now = byId("list");
  const isSame = now.children.length === items.length && items.every((item, k) => now.children[k] === item);
  if (!isSame) now.replaceChildren(...items); // else the focus stays where it is
  const judged = entries.filter(verdictOf).length;
  byId("count").textContent =
    `${count(shownEntries.length)} of ${count(entries.length)} shown, ${plural(judged, "verdict")} given`;
}

function choose(entry, open = false) {
  const before = chosen;
  chosen = entry;
  if (open && matchMedia("(max-width: 820px)").matches) enlarge(true);
  for (const each of [before, entry]) if (each) tile(each);
  drawMarks();
  show();
}

function walk(by) {
  if (!shownEntries.length) return;
  const now = shownEntries.indexOf(chosen);
  const next = now < 0 ? 0 : Math.min(shownEntries.length - 1, Math.max(0, now + by));
  choose(shownEntries[next]);
  tiles.get(chosen).item.scrollIntoView({ block: "nearest" });
  if (!document.body.classList.contains("large")) tiles.get(chosen).button.focus({ preventScroll: true });
}

function judgeAndGoOn(verdict) {
  if (!chosen) return;
  const entry = chosen;
  const now = shownEntries.indexOf(entry);
  judge(entry, verdict);
  if (shownEntries[now] === entry) walk(1); // else a filter has taken it away, and the next one is in its place
  else if (shownEntries.length) choose(shownEntries[Math.min(now, shownEntries.length - 1)]);
}

function enlarge(on) {
  if (on && !chosen) return;
  document.body.classList.toggle("large", on);
  if (on) byId("detail").focus();
  else if (chosen) tiles.get(chosen).button.focus();
}

// --- the selected image ---

function show() {
  const entry = chosen;
  if (!entry) return;
  const parts = [heading(entry), picture(entry), ...otherViews(entry), verdictButtons(entry), probabilities(entry), facts(entry)];
  byId("detail").replaceChildren(...parts);
}

function heading(entry) {
  const bag = entry.bag && entry.bag !== entry.uri ? [name(entry.bag), ": "] : [];
  return element("h3", {}, `${entries.indexOf(entry) + 1}. `, ...bag, name(entry.uri));
}

// The other views of a bag, in the order of the results: which alarm, and which failed.
function otherViews(entry) {
  if (!entry.views.length) return [];
  const figures = entry.views.map((view) => {
    const alarm = view.score !== null && (step === null ? view.alarm : view.score >= at(step));
    const told = view.score === null ? legible(`${view.status}${view.error ? `: ${view.error}` : ""}`) : `${alarm ? "alarm " : ""}${scoreText(view.score)}`;
    const shown = view.picture ? element("img", { src: view.picture, alt: "", loading: "lazy", decoding: "async" }) : element("span", {}, legible(view.gone ?? (view.score === null ? "no picture" : "left out here")));
    return element("figure", {}, element("div", { class: "frame" }, shown),
      element("figcaption", {}, element("span", { class: alarm ? "alarm-text" : "" }, told), " ", name(view.uri.split(/[/!]/).pop())));
  });
  const rest = entry.copies - 1 - entry.views.length;
  const more = rest ? [element("p", { class: "quiet" }, `and ${count(rest)} more views`)] : [];
  return [element("div", { class: "views", role: "group", "aria-label": "Other views of this bag" }, ...figures), ...more];
}

function picture(entry) {
  if (!entry.picture) return element("p", { id: "missing" }, legible(entry.gone ?? "no picture"));
  const frame = element("div", { id: "picture" });
  frame.style.setProperty("--ratio", entry.size[0] / entry.size[1]); // the heat covers the picture exactly
  frame.append(element("img", { src: entry.picture, alt: `X-ray image, rank ${entries.indexOf(entry) + 1}` }));
  if (heat && entry.heat) frame.append(heatOver(entry.heat));
  return frame;
}

function heatOver({ wide, high, levels }) {
  const bytes = Uint8Array.from(atob(levels), (c) => c.charCodeAt(0));
  const canvas = element("canvas", { width: wide, height: high });
  const pixels = new ImageData(wide, high);
  for (let place = 0; place < wide * high; place++) {
    let level = 0;
    classes.forEach((_, k) => {
      if (heatClass === null || heatClass === k) level = Math.max(level, bytes[k * wide * high + place]);
    });
    pixels.data.set([...HEAT, Math.round(0.65 * level)], 4 * place);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function verdictButtons(entry) {
  const given = verdictOf(entry);
  const row = element("div", { class: "verdicts", role: "group", "aria-label": "Verdict" });
  VERDICTS.forEach((verdict, k) => {
    const pressed = given === verdict;
    const press = () => judge(entry, pressed ? null : verdict);
    row.append(element("button", { type: "button", "aria-pressed": String(pressed), onclick: press }, `${verdict} `, element("kbd", {}, String(k + 1))));
  });
  if (entry.heat) {
    const press = () => { heat = !heat; show(); };
    row.append(element("button", { type: "button", "aria-pressed": String(heat), onclick: press }, "heat ", element("kbd", {}, "h")));
  }
  row.append(element("button", { type: "button", id: "close-large", onclick: () => enlarge(false) }, "Close ", element("kbd", {}, "Esc")));
  return row;
}

function probabilities(entry) {
  const rows = classes.map((label, k) => {
    const p = entry.p[k] ?? 0;
    const bar = element("span", { class: "bar" });
    bar.style.width = `${100 * p}%`;
    const press = () => { heatClass = heat && heatClass === k ? null : k; heat = true; show(); };
    const title = entry.heat
      ? element("button", { type: "button", "aria-pressed": String(heat && heatClass === k), onclick: press }, label)
      : label;
    return element("tr", { class: overThreshold(entry, k) ? "over" : "" }, element("th", { scope: "row" }, title),
      element("td", { class: "number" }, p.toFixed(3)), element("td", { class: "share" }, bar));
  });
  return element("table", { class: "probabilities" }, element("caption", { class: "unseen" }, "Probability of each class"), element("tbody", {}, ...rows));
}

function facts(entry) {
  const size = entry.width && entry.height ? `${entry.width} × ${entry.height} ${entry.format ?? ""}` : "unknown";
  const lines = [
    ["score", `${number(entry.score, 6)}${isAlarm(entry) ? ", an alarm" : ", no alarm"}`],
    ["losses", `reconstruction ${number(entry.losses[0])}, feature matching ${number(entry.losses[1])}`],
    ...(entry.typicality === null ? [] : [["typicality", `${number(entry.typicality)}${entry.typicality < 1 ? ", looks like nothing the model has seen" : ""}`]]),
    ["threats", entry.threats.length ? entry.threats.map(legible).join(", ") : "none over its class's threshold"],
    ["size", `${size}, ${count(entry.bytes ?? 0)} bytes`],
    ["SHA-256", entry.sha256],
  ];
  if (entry.warnings) lines.push(["warnings", legible(entry.warnings)]);
  const made = element("dl", { class: "facts-table" });
  for (const [term, text] of lines) made.append(element("dt", {}, term), element("dd", {}, text));
  if (entry.copies > 1 && !bags) {
    const others = element("ul", { class: "names" }, ...entry.places.map((uri) => element("li", {}, name(uri))));
    const rest = entry.copies - 1 - entry.places.length;
    made.append(element("dt", {}, "the same bytes"), element("dd", {}, `at ${plural(entry.copies - 1, "other place")}`, others, rest ? `and ${count(rest)} more` : ""));
  }
  return made;
}

// --- everything else ---

function setUpTotals() {
  byId("where").append(name(provenance.result));
  if (provenance.use) {
    byId("use").hidden = false;
    byId("use").textContent = `The model is ${provenance.use}.`;
  }
  const rate = totals.rate === null ? "unknown" : totals.rate.toPrecision(3);
  const tilesOfTotals = [
    ["images", count(totals.images), totals.containers ? `and ${plural(totals.containers, "folder or archive")} cut short` : ""],
    ["scored", count(totals.scored), totals.unscored ? `${count(totals.unscored)} ok without a score` : ""],
    ["failed", count(totals.failed), totals.failed ? "see the reasons below" : ""],
    ["alarms in the scan", count(totals.alarms), `${point.decision}, score ${number(point.threshold)} or above`],
    ...(bags ? [["bags", count(bags.count), `${count(bags.alarms)} with an alarm, ${count(bags.incomplete)} with a failed view`]] : []),
    ...(totals.atypical === null ? [] : [["atypical", count(totals.atypical), `${totals.atypical === 1 ? "image looks" : "images look"} like nothing the model has seen`]]),
    ["images a second", rate, totals.seconds === null ? "" : `${plural(provenance.runs.length, "run")}, start included`],
  ];
  for (const [term, value, note] of tilesOfTotals) {
    byId("totals").append(element("div", {}, element("dt", {}, term), element("dd", {}, value, element("small", {}, note))));
  }
}

function countTable(rows, most) {
  return element("table", {}, element("tbody", {}, ...rows.map(([label, value, extra]) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * value) / Math.max(1, most)}%`;
    return element("tr", {}, element("th", { scope: "row" }, label, extra ?? ""), element("td", { class: "number" }, count(value)), element("td", { class: "share" }, value ? bar : ""));
  })));
}

function setUpCounts() {
  const by = classes.map((label) => [label, totals.by_class[label] ?? 0]);
  byId("classes").append(countTable(by, totals.alarms),
    element("p", { class: "quiet" }, "At the scan's own operating point; an image may count for several classes, or for none."));
  if (!data.failures.length) {
    byId("failures").textContent = "None: every image was scored.";
    return;
  }
  const rows = data.failures.map((failure) => {
    const named = failure.rows.map((row) => element("li", {}, name(row.uri), row.error ? `: ${legible(row.error)}` : ""));
    const rest = failure.count - failure.rows.length;
    const more = element("details", {}, element("summary", {}, "where"), element("ul", { class: "names" }, ...named), rest ? `and ${count(rest)} more` : "");
    return [legible(failure.status), failure.count, more];
  });
  byId("failures").append(countTable(rows, Math.max(...data.failures.map((failure) => failure.count))));
}

function setUpGallery() {
  const words = [`The ${plural(totals.shown, bags ? "bag" : "image")} of the highest scores, one entry for ${bags ? "all views of a bag" : "equal bytes"}`];
  const rest = bags ? bags.count - totals.shown : totals.scored - totals.shown_rows;
  if (rest > 0) words.push(totals.cut ? `; ${plural(rest, `lower-scored ${bags ? "bag" : "image"}`)} left out (--top)` : `; ${plural(rest, "bag")} without a score left out`);
  else words.push(": all that were scored");
  if (sample) {
    words.splice(0, 2, `${plural(sample.drawn, "alarm")} drawn at random of the ${plural(sample.alarms, "distinct alarm")}: verdicts on all of them tell the rate of false alarms`);
    byId("gallery-title").textContent = "A sample of the alarms";
  }
  if (bags) byId("gallery-title").textContent = "Most anomalous bags";
  words.push(provenance.with_map ? "." : ". Without heat: this scan's model is not at hand or has no class map.");
  byId("left-out").textContent = words.join("");
  byId("class").append(...classes.map((label) => element("option", {}, label)));
  for (const id of ["find", "class", "verdict", "which", "sort"]) {
    byId(id).addEventListener("input", () => { list(); drawMarks(); });
  }
  byId("download").addEventListener("click", download);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("close").addEventListener("click", () => byId("keys").close());
}

function setUpProvenance() {
  const runs = provenance.runs.map((run) => element("div", {}, legible(`${run.start} to ${run.end} on ${run.host}`)));
  const sources = provenance.sources.map((source) => element("div", {}, name(source)));
  const lines = [
    ["model", legible(`${provenance.model} (${provenance.bundle_hash})`)],
    ["engine", legible(`${provenance.engine} on ${provenance.device}`)],
    ["operating point", `decision ${legible(point.decision)}, PFA ${number(point.pfa, 3)}, score ${number(point.threshold, 6)}`],
    ["sources", ...(sources.length ? sources : ["a list"])],
    ["runs", ...(runs.length ? runs : ["unknown"])],
    ["scan", legible(provenance.scan_id)],
    ["report", legible(`${provenance.by}, ${provenance.made}`)],
  ];
  for (const [term, ...values] of lines) {
    byId("provenance").append(element("dt", {}, term), element("dd", {}, ...values));
  }
}

const KEYS = {
  j: () => walk(1),
  k: () => walk(-1),
  Enter: () => enlarge(!document.body.classList.contains("large")),
  v: () => chosen && judge(chosen, [...VERDICTS, null][(VERDICTS.indexOf(verdictOf(chosen)) + 1) % 4]),
  1: () => judgeAndGoOn(VERDICTS[0]),
  2: () => judgeAndGoOn(VERDICTS[1]),
  3: () => judgeAndGoOn(VERDICTS[2]),
  0: () => judgeAndGoOn(null),
  h: () => { heat = !heat; show(); },
  c: () => { heat = true; heatClass = heatClass === null ? 0 : heatClass + 1 < classes.length ? heatClass + 1 : null; show(); },
  d: download,
  "/": () => byId("find").focus(),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const within = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Escape") {
    if (document.body.classList.contains("large")) enlarge(false);
    else within.blur?.();
    return;
  }
  if (within.matches("input:not([type=range]), select, summary")) return;
  if (event.key === "Enter" && within.matches("button") && !within.closest("#list")) return;
  const act = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (act) {
    event.preventDefault();
    act();
  }
});

setUpTotals();
setUpPoint();
setUpPlane();
setUpCounts();
setUpGallery();
setUpProvenance();
list();
drawPoint();
drawBoundary();
if (entries.length) choose(entries[0]);
