// The affinities of the tasks as an ordered heat map.

let affinityMap = null;

function startAffinity() {
  affinityMap = heatmap(byId("affinity-map"), byId("affinity-readout"), (row) =>
    selectTask(affinityTasks()[row]),
  );
}

/** Return the tasks that the filter shows, in the order of the picture. */
function affinityTasks() {
  const visible = new Set(shown.tasks);
  return shown.run.affinity.order.filter((task) => visible.has(task));
}

function showAffinity() {
  const { run } = shown;
  const { affinity } = run;
  byId("affinity-figure").hidden = !affinity.values;
  byId("affinity-note").textContent = affinity.missing ?? affinity.meaning;
  if (!affinity.values) return;
  const tasks = affinityTasks();
  const breaks = [];
  tasks.forEach((task, row) => {
    if (row && run.chosen[task] !== run.chosen[tasks[row - 1]]) breaks.push(row);
  });
  const { low, high } = affinity;
  const span = high - low || 1;
  byId("affinity-caption").textContent =
    `Affinity of ${counted(tasks.length, "task")}, by their branch at the end (lines), similar tasks ` +
    "beside each other. The diagonal has no meaning.";
  byId("affinity-map").setAttribute(
    "aria-label",
    `Heat map of the affinities of ${counted(tasks.length, "task")}. Arrow keys read single values.`,
  );
  byId("affinity-scale").replaceChildren(number(low, 3), element("i"), number(high, 3));
  showMatrix(affinityMap, {
    rows: tasks.length,
    columns: tasks.length,
    breaks,
    square: true,
    hint: "Point at a cell, or use the arrow keys in the picture, to read its value.",
    value: (row, column) =>
      row === column
        ? 0
        : Math.max(0, Math.min(1, (affinityOf(run, tasks[row], tasks[column]) - low) / span)),
    rowLabel: (row) => run.specs[tasks[row]].name,
    columnLabel: null,
    describe: (row, column) => describeAffinity(run, tasks[row], tasks[column]),
  });
}

function describeAffinity(run, a, b) {
  const [first, second] = [run.specs[a].name, run.specs[b].name];
  if (a === b) return `${first} with itself`;
  const where = run.chosen[a] === run.chosen[b] ? "the same branch" : "different branches";
  return `${first} and ${second}: ${number(affinityOf(run, a, b), 2)}, on ${where}`;
}

/** Return the tasks with the highest affinity to a task, with it. */
function nearestTasks(run, task, count) {
  if (!run.affinity.values) return [];
  const others = run.specs.map((_, other) => other).filter((other) => other !== task);
  const values = new Map(others.map((other) => [other, affinityOf(run, task, other)]));
  others.sort((a, b) => values.get(b) - values.get(a));
  return others.slice(0, count).map((other) => [other, values.get(other)]);
}
