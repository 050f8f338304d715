// On a page of many arms, the heads of tables sort their rows (up, down, back as they were written), and a link to a
// folded part unfolds it.
"use strict";
const MISSING = "-", FEWEST = 8;  // rows of a table that is worth sorting

function value(cell, isNumber) {
  const text = cell.textContent.trim();
  if (text === MISSING || !isNumber) return text;
  const found = text.replaceAll(",", "").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
  if (!found) return text;
  return Number(found[0]) + (text.startsWith("<") ? -1e-9 : text.startsWith(">") ? 1e-9 : 0);
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
}

function sort(table, heads, column, written) {
  const head = heads[column], was = head.getAttribute("aria-sort");
  const now = was === null ? "ascending" : was === "ascending" ? "descending" : null;
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  let rows = written;
  if (now !== null) {
    head.setAttribute("aria-sort", now);
    const isNumber = head.classList.contains("number"), sign = now === "ascending" ? 1 : -1;
    const keyed = written.map((row) => [value(row.cells[column], isNumber), row]);
    keyed.sort(([a], [b]) => (a === MISSING) - (b === MISSING) || sign * compare(a, b));  // missing ones stay last
    rows = keyed.map(([, row]) => row);
  }
  table.tBodies[0].append(...rows);
}

function unfold(part) {
  part.open = true;
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], written = [...table.tBodies[0].rows];
  if (written.length < FEWEST || !heads[0].textContent) continue;  // without a first head, rows are statistics
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, heads, column, written));
    head.append(button);
  });
}
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", () => document.querySelectorAll(`${link.hash} > details`).forEach(unfold));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(unfold));
