// The live page: asks the local server every second or two, lists all runs, and lets chart.js draw the chosen ones.
// Text from files only ever becomes text nodes, so nothing in it is markup.
"use strict";
const EVERY = 1500, MOST_DRAWN = 12, FIRST_DRAWN = 6;
const TRAINING = {"val/bpb": "train/bpb", "val/nll": "train/ce"}, OFTEN = 3;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id), part = (what) => document.querySelector(what);
const at = {metric: "val/bpb", asked: false, sort: "age", up: true, chosen: new Map(), runs: [], curves: [], over: null};

// ---- elements

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "polyline", "circle", "text", "rect", "clipPath"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const link = (path, text) => make("a", {href: `/files/${path}`, target: "_blank", rel: "noopener"}, text);

function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(value) >= size) return +(value / (letter === "k" ? 1e3 : size)).toPrecision(digits) + letter;
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(digits + 1));
}

function ago(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]])
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  return "now";
}

// ---- names and colours of the chosen runs

function describe(run) {
  const parts = [run.objective ?? "run"];
  if (run.weight !== null && run.objective !== "none") parts.push(number(run.weight));
  if (run.seed !== null) parts.push(`seed ${run.seed}`);
  return parts.join(" ");
}

function label(run) {  // short, but never the same for two runs that are drawn
  const end = (r, length) => r.folder.split("/").slice(-length).join("/");
  const alike = at.runs.filter((r) => r !== run && at.chosen.has(r.run) && describe(r) === describe(run));
  let length = 1;
  while (alike.some((r) => end(r, length) === end(run, length)) && length < 20) length++;
  return describe(run) + (alike.length ? ` · ${end(run, length)}` : "");
}

function choose(name, wanted) {
  if (!wanted) at.chosen.delete(name);
  else if (at.chosen.size < MOST_DRAWN) {
    const taken = new Set(at.chosen.values());
    at.chosen.set(name, [...Array(MOST_DRAWN).keys()].find((i) => !taken.has(i)));
  }
}

const look = (i) => [`c${i % 6}`, i < 6 ? "" : "dash1"];

// ---- the table

const COLUMNS = [
  ["run", "folder"], ["score", "score"], ["step", "step"], ["status", "status"], ["tokens/s", "speed"],
  ["objective", "objective"], ["weight", "weight"], ["seed", "seed"], ["written", "age"],
];
const WORDS = ["folder", "status", "objective"];

function cells(run) {
  const page = run.page ? [" ", link(`${run.run}/run.html`, "page")] : [];
  const files = make("a", {href: "#files", click: (event) => { event.preventDefault(); open(run.run, run.folder); }}, "files");
  const name = make("td", {class: "run"}, run.folder, " ", files, ...page);
  if (run.error) name.append(make("span", {class: "error"}, run.error));
  const of = run.of && run.status !== "finished" ? ` of ${number(run.of)}` : "";
  const told = {step: run.step === null ? "" : run.step.toLocaleString("en") + of, score: run.score === null ? "" : `${run.score.toFixed(4)} ${run.unit}`,
    speed: run.speed === null ? "" : number(run.speed, 3), weight: number(run.weight), age: ago(run.age)};
  const rest = COLUMNS.slice(1).map(([, key]) => make("td", {class: WORDS.includes(key) ? key : "number"}, told[key] ?? String(run[key] ?? "")));
  return [name, ...rest];
}

function compare(a, b) {
  const [x, y] = [a, b].map((run) => at.sort === "age" ? Math.floor(run.age / 60) : run[at.sort]);
  if (x === null || y === null) return (x === null) - (y === null);  // runs without a value come last
  const order = typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y;
  return (at.up ? order : -order) || b.folder.localeCompare(a.folder, "en", {numeric: true});
}

function list() {
  const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = at.runs.filter((run) => {
    const text = `${run.folder} ${run.status} ${run.objective} seed=${run.seed} weight=${run.weight} ${run.error}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  }).sort(compare);
  const key = JSON.stringify([shown.map((run) => ({...run, age: ago(run.age)})), [...at.chosen], at.sort, at.up]);
  if (key === at.listed) return;  // a table that is made anew loses the keyboard's focus
  at.listed = key;
  part("thead tr").replaceChildren(make("th", {}, "draw"), ...COLUMNS.map(([head, key]) => {
    const sorted = key === at.sort && (at.up ? "ascending" : "descending");
    const turn = () => { at.up = key === at.sort ? !at.up : true; at.sort = key; list(); };
    return make("th", {scope: "col", class: WORDS.includes(key) ? "" : "number", "aria-sort": sorted}, make("button", {type: "button", click: turn}, head));
  }));
  part("tbody").replaceChildren(...shown.map((run) => {
    const chosen = at.chosen.get(run.run), drawn = chosen !== undefined;
    const box = make("input", {type: "checkbox", "aria-label": `draw ${run.folder}`, checked: drawn ? "" : false,
      change: (event) => { choose(run.run, event.target.checked); list(); curves(); }});
    const mark = drawn ? [make("span", {class: `swatch ${look(chosen)[0]}`})] : [];
    return make("tr", {class: run.status}, make("td", {}, box, ...mark), ...cells(run));
  }));
  const more = at.leftOut ? `; the ${at.leftOut} oldest are left out` : "";
  $("count").textContent = `${shown.length} of ${at.runs.length} runs${more}`;
}

// ---- samples and files

async function open(path, name) {
  const {entries} = await ask(`/api/files?folder=${encodeURIComponent(path)}`);
  $("place").textContent = name;
  part("#files ul").replaceChildren(...entries.map((e) => make("li", {}, e.bytes === null
    ? make("a", {href: "#files", click: (event) => { event.preventDefault(); open(e.path, `${name}/${e.name}`); }}, `${e.name}/`)
    : link(e.path, e.name), e.bytes === null ? "" : `, ${number(e.bytes, 3)}B`)));
  $("files").hidden = false;
  $("files").scrollIntoView({behavior: "smooth"});
}

const texts = new Map();

async function samples() {
  const runs = at.runs.filter((run) => run.sample && at.chosen.has(run.run));
  for (const run of runs) if (!texts.has(run.run)) {
    const answer = await fetch(`/files/${run.run}/sample.txt`);
    texts.set(run.run, answer.ok ? await answer.text() : "");
  }
  $("samples").hidden = !runs.length;
  const key = runs.map((run) => run.run).join();
  if ($("samples").dataset.of === key) return;  // redrawing would close what is open
  $("samples").dataset.of = key;
  part("#samples div").replaceChildren(...runs.map((run) =>
    make("details", {}, make("summary", {class: look(at.chosen.get(run.run))[0]}, label(run)), make("pre", {}, texts.get(run.run)))));
}

// ---- following

async function ask(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

const judged = () => at.runs.find((run) => at.chosen.has(run.run))?.metric ?? at.metric;

async function curves(metric = at.asked ? at.metric : judged()) {
  at.metric = metric;
  const query = new URLSearchParams({metric: at.metric, x: $("axis").value});
  for (const name of at.chosen.keys()) query.append("run", name);
  const found = await ask(`/api/curves?${query}`);
  at.curves = found.curves;
  if (!at.asked && !found.curves.some(({x}) => x.length >= OFTEN) && found.metrics.includes(TRAINING[metric]))
    return curves(TRAINING[metric]);  // validated once, at the end: that is no curve
  const names = [...new Set([at.metric, ...found.metrics])].sort();
  if (names.join() !== [...$("metric").options].map((o) => o.value).join())
    $("metric").replaceChildren(...names.map((name) => make("option", {value: name, selected: name === at.metric ? "" : false}, name)));
  draw();
  await samples();
}

async function follow() {
  try {
    const found = await ask("/api/runs");
    const before = new Set(at.runs.map((run) => run.run));
    at.runs = found.runs;
    at.leftOut = found.left_out;
    $("folder").textContent = found.folder;
    const first = before.size === 0 ? FIRST_DRAWN : MOST_DRAWN;
    for (const run of at.runs)  // at first the latest runs, then each new one
      if (!before.has(run.run) && at.chosen.size < first) choose(run.run, true);
    list();
    $("reports").hidden = !found.reports.length;
    part("#reports ul").replaceChildren(...found.reports.map((r) => make("li", {}, link(r.path, r.name))));
    await curves();
    $("state").textContent = at.runs.some((run) => run.status === "running") ? "following" : "";
    $("state").className = "";
  } catch (error) {
    $("state").textContent = `no answer from the server (${error.message})`;
    $("state").className = "lost";
  }
  setTimeout(follow, EVERY);
}

$("metric").addEventListener("change", (event) => { at.metric = event.target.value; at.asked = true; curves(); });
$("axis").addEventListener("change", () => curves());
for (const id of ["smooth", "whole"]) $(id).addEventListener("change", draw);
$("filter").addEventListener("input", list);
$("none").addEventListener("click", () => { at.chosen.clear(); list(); curves(); });
addEventListener("resize", draw);
follow();
