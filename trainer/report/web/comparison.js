// Several runs: the agreement of their groupings, and paired differences per task.

let showDifferences = null;

function startComparison() {
  const { comparison, runs } = content;
  byId("comparison").hidden = !comparison;
  if (!comparison) return;
  const body = byId("comparison-body");
  body.append(agreement(comparison, runs));
  if (comparison.left_out.length) {
    body.append(element("p", {}, `Not in all runs, and left out: ${comparison.left_out.join(", ")}.`));
  }
  if (comparison.pairs.length) body.append(...differences(comparison));
  else body.append(element("p", {}, "The runs differ in nothing but their seeds, so there is no difference to show."));
}

function agreement(comparison, runs) {
  const head = element("tr", {}, element("td"), ...runs.map((run, n) => element("th", { scope: "col" }, `${n + 1}`)));
  const rows = runs.map((run, n) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, `${n + 1}: ${run.name}`),
      ...comparison.agreement[n].map((value) =>
        element("td", { class: "agreement", style: `--p: ${Math.max(0, value ?? 0)}` }, value === null ? "–" : value.toFixed(2)),
      ),
    ),
  );
  return element(
    "div",
    {},
    element("h3", {}, "Agreement of the groupings"),
    element("p", {}, "Adjusted Rand index of two runs: 1 for equal groups, about 0 for groups by chance."),
    element(
      "div",
      { class: "scroll", role: "region", tabindex: "0", "aria-label": "Agreement of the groupings" },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
    ),
  );
}

function differences(comparison) {
  const select = element("select", { id: "pair" });
  comparison.pairs.forEach((pair, n) => select.append(element("option", { value: n }, pair.name)));
  const note = element("p", { "aria-live": "polite" });
  const table = element("div", { id: "difference-table" });
  const label = element("label", {}, `Difference to ${comparison.reference}: `, select);
  const show = () => {
    const pair = comparison.pairs[Number(select.value)];
    note.textContent = pairNote(comparison, pair);
    showDifferences = differenceTable(table, comparison, pair);
  };
  select.addEventListener("change", show);
  // The page has its tasks only after the first run is shown.
  showDifferences = show;
  return [element("h3", {}, "Paired difference of each task"), element("p", {}, label), note, table];
}

function pairNote(comparison, pair) {
  if (!pair.seeds.length) return "The two settings have no seed in common, so that nothing can be paired.";
  const level = Math.round(100 * comparison.level);
  const width = pair.change_half === null ? "" : ` ± ${Number(pair.change_half.toPrecision(3))}`;
  const interval =
    pair.seeds.length > 1
      ? `Intervals of ${level} % by Student's t over ${pair.seeds.length} seeds; of many tasks about ` +
        `${100 - level} in 100 differ from zero by chance.`
      : "With one seed there is no interval.";
  const change =
    pair.change === null
      ? ""
      : `Mean change against ${comparison.reference} over ${counted(pair.change_tasks, "task")}: ` +
        `${percent(pair.change)}${width}. ${content.change} `;
  return `${change}Paired by seed (${pair.seeds.join(", ")}): ${pair.name} minus ${comparison.reference}. ${interval}`;
}

function differenceTable(place, comparison, pair) {
  const { run } = shown;
  const of = (task) => pair.tasks[run.specs[task].name];
  const better = (task) => (run.specs[task].higher ? 1 : -1) * of(task).mean;
  const tasks = () => shown.tasks.filter((task) => of(task));
  const widest = Math.max(0, ...Object.values(pair.tasks).map(({ mean, half }) => Math.abs(mean) + (half ?? 0)));
  const columns = [
    { title: "Task", value: (task) => run.specs[task].name, cell: nameButton },
    { title: "Metric", value: (task) => run.specs[task].metric, cell: (task) => `${run.specs[task].metric} ${run.specs[task].higher ? "↑" : "↓"}` },
    { title: "Difference", number: true, value: (task) => of(task).mean, cell: (task) => number(of(task).mean, 3) },
    { title: "±", number: true, value: (task) => of(task).half, cell: (task) => number(of(task).half, 2) },
    { title: "Interval", cell: (task) => intervalPicture(of(task), widest) },
    { title: "Verdict", value: better, cell: (task) => verdict(of(task), better(task)) },
  ];
  return sortedTable(place, "Paired differences", columns, tasks);
}

function verdict({ half, mean }, better) {
  if (half === null) return "one seed: unknown";
  if (Math.abs(mean) <= half) return "not distinguishable";
  return element("span", { class: better > 0 ? "good" : "bad" }, better > 0 ? "better" : "worse");
}

/** Return a picture of an interval; the line in the middle is zero. What is wider ends at its edge. */
function intervalPicture({ mean, half }, widest) {
  const x = (value) => Math.max(1, Math.min(149, 75 + (70 * value) / (widest || 1))).toFixed(1);
  const parts = [svg("line", { x1: 75, x2: 75, y1: 1, y2: 19 })];
  if (half !== null) parts.push(svg("line", { class: "range", x1: x(mean - half), x2: x(mean + half), y1: 10, y2: 10 }));
  parts.push(svg("circle", { cx: x(mean), cy: 10, r: 3.5 }));
  const label = half === null ? number(mean, 3) : `${number(mean - half, 3)} to ${number(mean + half, 3)}`;
  return svg("svg", { class: "interval", viewBox: "0 0 150 20", role: "img", "aria-label": label }, ...parts);
}
