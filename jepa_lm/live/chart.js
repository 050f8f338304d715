// The chart of the live page: the curves of the chosen runs, their names, and the values under the pointer.
// It shares the names of page.js: what is chosen and fetched (`at`), and what makes elements.
"use strict";
const START = 0.2, TICKS = 6;

function ticks(low, high) {
  const rough = (high - low) / TICKS, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * size).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

function smoothed(values, width) {
  let sum = 0;
  return values.map((value, i) => {
    sum += value - (i >= width ? values[i - width] : 0);
    return sum / Math.min(i + 1, width);
  });
}

function lines() {  // what is drawn: each chosen run with its label, its look and its points
  const width = +$("smooth").value;
  return at.curves.flatMap(({run: name, x, y}) => {
    const run = at.runs.find((r) => r.run === name);
    if (!run || !at.chosen.has(name)) return [];
    const points = smoothed(y, width).map((value, i) => [x[i], value]);
    return points.length ? [{run, label: label(run), look: look(at.chosen.get(name)), points}] : [];
  });
}

function limits(drawn) {  // without the start of training, beside which the rest would look flat
  const whole = $("whole").checked;
  const values = drawn.flatMap(({points}) => {
    const from = points[0][0] + START * (points.at(-1)[0] - points[0][0]);
    return points.filter(([x]) => whole || x >= from).map(([, y]) => y);
  });
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function draw() {
  const box = $("chart"), width = Math.max(280, box.clientWidth), height = width < 600 ? 270 : 380;
  const drawn = lines();
  legend(drawn);
  if (!drawn.length) {
    const why = at.chosen.size ? `No chosen run has measured ${at.metric} over this axis so far.` : "Choose runs in the table below.";
    return box.replaceChildren(make("p", {class: "quiet"}, why));
  }
  const beside = width >= 600;  // names of lines at their ends, else only in the legend
  const room = beside ? Math.min(250, 20 + 7 * Math.max(...drawn.map((d) => d.label.length))) : 14;
  const [left, right, top, bottom] = [58, width - room, 10, height - 40];
  const [low, high] = limits(drawn);
  const first = Math.min(...drawn.map((d) => d.points[0][0])), last = Math.max(...drawn.map((d) => d.points.at(-1)[0]));
  const from = first === last ? 0 : first, span = (last - from) || 1;
  const px = (x) => left + (x - from) / span * (right - left);
  const py = (y) => bottom - (Math.min(y, 2 * high - low) - low) / (high - low) * (bottom - top);
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${at.metric} of ${drawn.map((d) => d.label).join(", ")}`});
  svg.append(make("clipPath", {id: "plot"}, make("rect", {x: left, y: top, width: right - left, height: bottom - top})));
  for (const tick of ticks(low, high)) {
    svg.append(make("line", {class: "grid", x1: left, x2: right, y1: py(tick), y2: py(tick)}));
    svg.append(make("text", {x: left - 8, y: py(tick) + 4, "text-anchor": "end"}, number(tick)));
  }
  for (const tick of ticks(from, from + span)) svg.append(make("text", {x: px(tick), y: bottom + 18, "text-anchor": "middle"}, number(tick)));
  svg.append(make("text", {x: (left + right) / 2, y: height - 4, "text-anchor": "middle"}, $("axis").selectedOptions[0].text));
  for (const {points, look: [colour, dash]} of drawn) {
    const path = points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ");
    svg.append(make("polyline", {class: `line ${colour} ${dash}`, points: path, "clip-path": "url(#plot)"}));
    if (points.length < 30) for (const [x, y] of points) if (y <= high) svg.append(make("circle", {class: `dot ${colour}`, cx: px(x), cy: py(y), r: 2.5}));
  }
  if (beside) name(svg, drawn.map((d) => ({d, x: px(d.points.at(-1)[0]) + 8, y: py(Math.min(d.points.at(-1)[1], high)) + 4})), bottom, room);
  const show = hover(svg, drawn, {px, py, top, bottom, high}, (x) => from + (x - left) / (right - left) * span);
  box.replaceChildren(svg);
  if (at.over !== null) show(at.over);
}

function name(svg, ends, bottom, room) {  // at the ends of the lines, never over one another
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    const beside = (other) => Math.abs(other.x - end.x) < room;
    const above = ends.slice(0, i).filter(beside), below = ends.slice(i + 1).filter(beside);
    end.y = Math.max(Math.min(end.y, bottom - 15 * below.length), ...above.map((other) => other.y + 15));
    svg.append(make("text", {class: `name ${end.d.look[0]}`, x: end.x, y: end.y}, end.d.label));
  });
}

function hover(svg, drawn, {px, py, top, bottom, high}, under) {  // the values under the pointer, in the legend
  const marks = make("g");
  svg.append(marks);
  const show = (clientX) => {
    at.over = clientX;
    const x = under(clientX - svg.getBoundingClientRect().left);
    const nearer = (a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a;
    const near = drawn.map((d) => ({...d, value: d.points.reduce(nearer)}));
    const place = near.map((d) => d.value).reduce(nearer)[0];
    marks.replaceChildren(make("line", {class: "cross", x1: px(place), x2: px(place), y1: top, y2: bottom}),
      make("text", {class: "told", x: px(place), y: bottom + 18, "text-anchor": "middle"}, number(place, 5)),
      ...near.filter((d) => d.value[1] <= high).map((d) => make("circle", {class: `dot ${d.look[0]}`, cx: px(d.value[0]), cy: py(d.value[1]), r: 4})));
    legend(near);
  };
  svg.addEventListener("pointermove", (event) => show(event.clientX));
  svg.addEventListener("pointerleave", () => { at.over = null; marks.replaceChildren(); legend(drawn); });
  return show;
}

function legend(drawn) {  // name and value of each line: the latest, or the one under the pointer
  $("legend").replaceChildren(...drawn.map((d) => {
    const [x, y] = d.value ?? d.points.at(-1);
    const line = make("svg", {viewBox: "0 0 26 8", "aria-hidden": "true"}, make("line", {class: d.look[1], x1: 0, y1: 4, x2: 26, y2: 4}));
    return make("li", {class: d.look[0]}, line, make("b", {}, d.label), make("span", {class: "value"}, `${number(y)} at ${number(x, 5)}`));
  }));
}
