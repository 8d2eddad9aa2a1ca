"use strict";
// Sorts and filters the worklist. Without it the page shows the same table, by falling score.
(() => {
  const openAll = () => document.querySelectorAll("details").forEach((d) => { d.open = true; });
  window.addEventListener("beforeprint", openAll);

  const table = document.getElementById("worklist-table");
  if (!table) return;
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  let rows = Array.from(body.rows);

  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim().toLowerCase();
    return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
  };

  const sortBy = (column, direction) => {
    const numeric = headers[column].dataset.kind === "number";
    const sign = direction === "ascending" ? 1 : -1;
    const text = new Intl.Collator(undefined, { numeric: true });
    const keyed = rows.map((row) => [key(row, column, numeric), row]);
    keyed.sort(([a], [b]) => {
      if (!numeric) return sign * text.compare(a, b);
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // undefined last, both ways
      return sign * (a - b);
    });
    rows = keyed.map(([, row]) => row);
    body.append(...rows);
    headers.forEach((h, i) => h.setAttribute("aria-sort", i === column ? direction : "none"));
  };

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `sort by ${header.textContent.trim()}`);
    header.append(button); // lies over the text, which stays in the header: browsers do not repeat buttons on paper
    header.setAttribute("aria-sort", column === 0 ? "ascending" : "none");
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const first = header.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(column, now === first ? other : first);
    });
  });

  const form = document.getElementById("filters");
  const input = document.getElementById("filter-text");
  const boxes = Array.from(form.querySelectorAll("input[name=verdict]"));
  const total = rows.length;
  const search = new Map(rows.map((r) => [r, `${r.cells[1].textContent} ${r.cells[4].textContent}`.toLowerCase()]));

  const filter = () => {
    const wanted = input.value.trim().toLowerCase();
    const verdicts = new Set(boxes.filter((b) => b.checked).map((b) => b.value));
    let shown = 0;
    for (const row of rows) {
      const visible = verdicts.has(row.dataset.verdict) && search.get(row).includes(wanted);
      row.hidden = !visible;
      shown += visible;
    }
    document.getElementById("filter-count").textContent = `${shown} of ${total} shown`;
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  form.hidden = false;
  filter();
})();
