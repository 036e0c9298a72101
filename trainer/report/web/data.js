// The content of the page, the run that is shown, and the tasks that the filter shows.

const content = JSON.parse(byId("content").textContent);

const shown = {
  run: null, // of content.runs, prepared by `prepared`
  tasks: [], // numbers of the tasks that the filter shows, in the order of the groups
  frame: 0, // of the run's history
};

/** Return the bytes of a text in base64. */
function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** Return a run with its packed values decoded. */
function prepared(run) {
  if (run.specs) return run;
  run.specs = content.task_sets[run.tasks];
  run.lowerNames = run.specs.map((spec) => spec.name.toLowerCase());
  if (run.history) run.history.cells = bytes(run.history.values);
  if (run.affinity.values) {
    run.affinity.cells = bytes(run.affinity.values);
    run.affinity.position = [];
    run.affinity.order.forEach((task, place) => (run.affinity.position[task] = place));
  }
  run.usedBranches = [...new Set(run.chosen)].sort((a, b) => a - b);
  const place = run.affinity.position ?? run.specs.map((_, task) => task);
  run.order = run.specs.map((_, task) => task);
  run.order.sort((a, b) => run.chosen[a] - run.chosen[b] || place[a] - place[b]);
  return run;
}

/** Return the probability of a branch for a task in a frame of the history. */
function probability(run, frame, task, branch) {
  if (!run.history) return run.chosen[task] === branch ? 1 : 0;
  const row = (frame * run.specs.length + task) * run.branches;
  return run.history.cells[row + branch] / 100;
}

/** Return the most probable branch of a task in a frame, with its probability. */
function likeliest(run, frame, task) {
  if (!run.history) return [run.chosen[task], 1];
  let best = run.chosen[task];
  for (let branch = 0; branch < run.branches; branch += 1) {
    if (probability(run, frame, task, branch) > probability(run, frame, task, best)) best = branch;
  }
  return [best, probability(run, frame, task, best)];
}

/** Return the place of two tasks in the lower triangle of a run that has affinities. */
function pairPlace({ affinity }, a, b) {
  const [row, column] = [affinity.position[a], affinity.position[b]].sort((x, y) => y - x);
  return (row * (row + 1)) / 2 + column;
}

/** Return the affinity of two tasks of a run that has affinities. */
function affinityOf(run, a, b) {
  const { cells, low, high } = run.affinity;
  return low + (high - low) * (cells[pairPlace(run, a, b)] / 255);
}

/** Return how often two tasks share a group over resampled steps, from 0 to 1, in twentieths. */
function coAssignmentOf(run, a, b) {
  return (run.affinity.together.charCodeAt(pairPlace(run, a, b)) - "A".charCodeAt(0)) / 20;
}

/** Return the last value of the primary metric of a task. */
function metricOf(run, task) {
  return run.metrics[task][run.specs[task].metric] ?? null;
}

/** Return the change of a task against a reference value, in percent, positive where better. */
function changeOf(run, task, reference) {
  const value = metricOf(run, task);
  if (value === null || reference === null || !(reference > 0)) return null;
  const change = (100 * (value - reference)) / reference;
  return run.specs[task].higher ? change : -change;
}
