// A table of tasks that is sorted by its headers and shown page by page.

const PAGE_ROWS = 25;

/**
 * Show a table.
 *
 * columns: of {title, value(row), cell(row), number}; `value` sorts, `cell` is a text or an element.
 * rows: called for the rows that the filter shows.
 * Returns a function that shows the table again, after the filter or the data has changed.
 */
function sortedTable(container, caption, columns, rows) {
  const state = { column: null, descending: false, page: 0 };
  const head = element("tr");
  const body = element("tbody");
  const table = element("table", {}, element("thead", {}, head), body);
  const region = element(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    table,
  );
  const text = element("span", { "aria-live": "polite" });
  const previous = element("button", { type: "button", onclick: () => turn(-1) }, "Previous");
  const next = element("button", { type: "button", onclick: () => turn(1) }, "Next");
  const pager = element("div", { class: "pager" }, previous, next, text);
  container.replaceChildren(region, pager);
  const headers = columns.map((column, n) => {
    const sort = element("button", { type: "button", onclick: () => sortBy(n) }, column.title);
    const cell = element("th", { scope: "col", class: column.number ? "number" : null });
    cell.append(column.value ? sort : column.title);
    head.append(cell);
    return cell;
  });

  function sortBy(n) {
    state.descending = state.column === n ? !state.descending : false;
    state.column = n;
    state.page = 0;
    show();
  }

  function turn(by) {
    state.page += by;
    show();
  }

  function sorted() {
    const all = [...rows()];
    if (state.column === null) return all;
    const { value } = columns[state.column];
    const sign = state.descending ? -1 : 1;
    return all.sort((a, b) => compareValues(value(a), value(b), sign));
  }

  function show() {
    const all = sorted();
    const pages = Math.max(1, Math.ceil(all.length / PAGE_ROWS));
    state.page = clamp(state.page, pages);
    const first = state.page * PAGE_ROWS;
    const visible = all.slice(first, first + PAGE_ROWS);
    body.replaceChildren(...visible.map((row) => tableRow(columns, row)));
    headers.forEach((cell, n) => {
      if (n !== state.column) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    });
    text.textContent = all.length
      ? `${first + 1} to ${first + visible.length} of ${all.length}`
      : "No task matches the filter.";
    previous.disabled = state.page === 0;
    next.disabled = state.page >= pages - 1;
    previous.hidden = next.hidden = pages === 1;
  }

  show();
  return show;
}

/** Compare two values for sorting: texts or numbers; those that are missing come last. */
function compareValues(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "string") return sign * a.localeCompare(b, undefined, { numeric: true });
  return sign * (a - b);
}

function tableRow(columns, row) {
  const cells = columns.map((column, n) => {
    const content = column.cell(row);
    const attributes = { class: column.number ? "number" : null };
    if (n === 0) return element("th", { scope: "row" }, content);
    return element("td", attributes, content);
  });
  return element("tr", {}, ...cells);
}
