"use strict";
// Sorting: a click on a column's head, the better end first; another click turns it round. Rows without a value stay at the end.
function sortBy(table, column, head) {
  const better = Number(head.dataset.better);
  const first = better > 0 ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? (first === "ascending" ? "descending" : "ascending") : first;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b)) : a - b);
  const rows = Array.from(table.tBodies[0].rows);
  const known = rows.filter((row) => value(row) !== undefined);
  known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(value(a), value(b)));
  table.tBodies[0].append(...known, ...rows.filter((row) => value(row) === undefined));
}

for (const table of document.querySelectorAll("table.scores")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sortBy(table, column, head)));
}

// Filtering: tables and pictures show the methods whose names contain one of the words, pictures the chosen prompt.
function filter() {
  const words = document.getElementById("method").value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
  const prompt = document.getElementById("prompt").value;
  for (const part of document.querySelectorAll("[data-method]")) {
    const name = part.dataset.method.toLowerCase();
    part.hidden = words.length > 0 && !words.some((word) => name.includes(word));
  }
  for (const part of document.querySelectorAll("[data-prompt]")) part.hidden = prompt !== "" && part.dataset.prompt !== prompt;
}

document.getElementById("method").addEventListener("input", filter);
document.getElementById("prompt").addEventListener("change", filter);
filter();
