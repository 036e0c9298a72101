// The table of the tasks, and the curves of the task that is selected.

let showTaskTable = null;

function startTasks() {
  byId("detail-title").addEventListener("keydown", (event) => {
    if (event.key === "Escape") selectTask(null);
  });
}

/** Make the table for another run, whose columns may differ. */
function showTasksOfRun() {
  const { run } = shown;
  const spec = (task) => run.specs[task];
  const arrow = (task) => (spec(task).higher ? "↑" : "↓");
  const columns = [
    { title: "Task", value: (task) => spec(task).name, cell: nameButton },
    { title: "Branch", number: true, value: (task) => run.chosen[task], cell: (task) => String(run.chosen[task]) },
    { title: "Kind", value: (task) => spec(task).kind, cell: (task) => spec(task).kind.replaceAll("_", " ") },
    { title: "Metric", value: (task) => spec(task).metric, cell: (task) => `${spec(task).metric} ${arrow(task)}` },
    { title: "Value", number: true, value: (task) => metricOf(run, task), cell: (task) => number(metricOf(run, task)) },
  ];
  if (run.constants.some((value) => value !== null)) {
    columns.push(...against("Constant", "Change against constant", run.constants));
  }
  if (run.reference.some((value) => value !== null)) {
    columns.push(...against("Reference", "Change against reference", run.reference));
  }
  columns.push({ title: "Training loss", cell: (task) => sparkline(run.curves.losses[task]) });
  byId("tasks-note").textContent = tasksNote(run);
  showTaskTable = sortedTable(byId("task-table"), "Table of the tasks", columns, () => shown.tasks);

  function against(title, change, values) {
    return [
      { title, number: true, value: (task) => values[task], cell: (task) => number(values[task]) },
      {
        title: change,
        number: true,
        value: (task) => changeOf(run, task, values[task]),
        cell: (task) => changeText(changeOf(run, task, values[task])),
      },
    ];
  }
}

function tasksNote(run) {
  const constant = run.constants.some((value) => value !== null)
    ? "“Constant” is the best constant prediction, on the same samples. "
    : `${run.no_data ?? ""} There is no constant prediction to compare with. `;
  const reference = run.reference.some((value) => value !== null)
    ? `“Reference” is ${content.reference_name}. `
    : "";
  return `Metrics of the last evaluation; ↓ lower is better, ↑ higher is better. ${constant}${reference}${content.change}`;
}

function changeText(change) {
  if (change === null) return "–";
  return element("span", { class: change > 0 ? "good" : "bad" }, percent(change));
}

function nameButton(task) {
  const { name } = shown.run.specs[task];
  return element("button", { type: "button", onclick: () => selectTask(task) }, name);
}

/** Return a small picture of a curve, which the charts of the task show in full. */
function sparkline(values) {
  const known = values.map((value, n) => [n, value]).filter(([, value]) => value !== null);
  if (known.length < 2) return "–";
  const all = known.map(([, value]) => value);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (n) => (94 * n) / (values.length - 1) + 1;
  const y = (value) => 20 - (18 * (value - low)) / (high - low || 1);
  const path = known.map(([n, value], i) => `${i ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`);
  const label = `from ${number(all[0], 3)} to ${number(all.at(-1), 3)}`;
  return svg(
    "svg",
    { class: "spark", viewBox: "0 0 96 22", role: "img", "aria-label": label },
    svg("path", { d: path.join("") }),
  );
}

/** Show the curves of a task, and move the focus to them; null hides them. */
function selectTask(task) {
  shown.selected = task;
  showGroups();
  showDetail();
  if (task === null) return;
  byId("detail-title").focus({ preventScroll: true });
  byId("detail").scrollIntoView({ block: "nearest" });
}

function showDetail() {
  const { run, selected: task } = shown;
  const place = byId("detail-charts");
  clearCharts(place);
  byId("detail").hidden = task === null;
  if (task === null) return;
  const { name, metric, unit, higher, loss, kind } = run.specs[task];
  byId("detail-title").textContent = name;
  const near = nearestTasks(run, task, 5).map(([other, value]) => `${run.specs[other].name} (${number(value, 2)})`);
  byId("detail-text").textContent =
    `${kind.replaceAll("_", " ")} on branch ${run.chosen[task]}, loss ${loss}.` +
    (near.length ? ` Highest affinities: ${near.join(", ")}.` : "");
  const { curves } = run;
  addChart(
    place,
    `Training loss of ${name}`,
    lineChart([{ name: loss, steps: curves.loss_steps, values: curves.losses[task] }], [], { title: "loss", log: true }),
    `Training loss of ${name} over the steps`,
  );
  const levels = [
    ["constant prediction", run.constants[task]],
    [content.reference_name, run.reference[task]],
  ].filter(([, value]) => value !== null);
  const evaluated = { name: "this run", steps: curves.metric_steps, values: curves.metric_values[task] };
  const better = higher ? "higher is better" : "lower is better";
  addChart(
    place,
    `Evaluation of ${name}`,
    lineChart([evaluated], levels.map(([level, value]) => ({ name: level, value })), {
      title: unit ? `${metric}, ${unit} (${better})` : `${metric} (${better})`,
    }),
    `${metric} of ${name} in the evaluations, last ${number(metricOf(run, task))}; ` +
      levels.map(([level, value]) => `${level} ${number(value)}`).join(", "),
  );
  const metrics = Object.entries(run.metrics[task]).map(([key, value]) => `${key} ${number(value)}`);
  if (metrics.length) byId("detail-text").append(` Last evaluation: ${metrics.join(", ")}.`);
}
