// The affinities and co-assignments of the tasks as an ordered heat map.

let affinityMap = null;

function startAffinity() {
  affinityMap = heatmap(byId("affinity-map"), byId("affinity-readout"), (row) =>
    selectTask(affinityTasks()[row]),
  );
  byId("matrix").addEventListener("change", showAffinity);
}

/** Return the tasks that the filter shows, in the order of the picture. */
function affinityTasks() {
  const visible = new Set(shown.tasks);
  return shown.run.affinity.order.filter((task) => visible.has(task));
}

/** Return the matrix that is chosen: its noun, what it means, its range, and the value of a pair. */
function chosenMatrix(run) {
  const { low, high, meaning, together } = run.affinity;
  if (!together || byId("matrix").value === "affinity") {
    return { noun: "Affinity", plural: "affinities", meaning, low, high, of: (a, b) => affinityOf(run, a, b) };
  }
  return {
    noun: "Co-assignment",
    plural: "co-assignments",
    meaning:
      "How often two tasks shared a group when the groups were formed again from resampled steps of the " +
      "warm-up, from 0 (never) to 1 (always). The blocks of firm groups are full, and the rest is empty.",
    low: 0,
    high: 1,
    of: (a, b) => coAssignmentOf(run, a, b),
  };
}

function showAffinity() {
  const { run } = shown;
  const { affinity } = run;
  byId("affinity-figure").hidden = !affinity.values;
  byId("matrix-label").hidden = !affinity.together;
  byId("affinity-note").textContent = affinity.missing ?? "";
  if (!affinity.values) return;
  const matrix = chosenMatrix(run);
  byId("affinity-note").textContent = matrix.meaning;
  const tasks = affinityTasks();
  const breaks = [];
  tasks.forEach((task, row) => {
    if (row && run.chosen[task] !== run.chosen[tasks[row - 1]]) breaks.push(row);
  });
  const { low, high } = matrix;
  const span = high - low || 1;
  byId("affinity-caption").textContent =
    `${matrix.noun} of ${counted(tasks.length, "task")}, by their branch at the end (lines), tasks of high ` +
    "affinity beside each other. The diagonal has no meaning.";
  byId("affinity-map").setAttribute(
    "aria-label",
    `Heat map of the ${matrix.plural} of ${counted(tasks.length, "task")}. Arrow keys read single values.`,
  );
  byId("affinity-scale").replaceChildren(number(low, 3), element("i"), number(high, 3));
  showMatrix(affinityMap, {
    rows: tasks.length,
    columns: tasks.length,
    breaks,
    square: true,
    hint: "Point at a cell, or use the arrow keys in the picture, to read its value.",
    value: (row, column) =>
      row === column ? 0 : Math.max(0, Math.min(1, (matrix.of(tasks[row], tasks[column]) - low) / span)),
    rowLabel: (row) => run.specs[tasks[row]].name,
    columnLabel: null,
    describe: (row, column) => describePair(run, matrix, tasks[row], tasks[column]),
  });
}

function describePair(run, matrix, a, b) {
  const [first, second] = [run.specs[a].name, run.specs[b].name];
  if (a === b) return `${first} with itself`;
  const where = run.chosen[a] === run.chosen[b] ? "the same branch" : "different branches";
  return `${first} and ${second}: ${number(matrix.of(a, b), 2)}, on ${where}`;
}

/** Return the tasks with the highest affinity to a task, with it. */
function nearestTasks(run, task, count) {
  if (!run.affinity.values) return [];
  const others = run.specs.map((_, other) => other).filter((other) => other !== task);
  const values = new Map(others.map((other) => [other, affinityOf(run, task, other)]));
  others.sort((a, b) => values.get(b) - values.get(a));
  return others.slice(0, count).map((other) => [other, values.get(other)]);
}
