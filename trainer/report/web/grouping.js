// The groups: the probabilities of the branches at a step, as a picture and as chips.

const FRAME_SECONDS = 0.15; // between two pictures while it plays
const PLAYED_FRAMES = 80; // of a long history

let grid = null;
let player = null;

function startGrouping() {
  grid = heatmap(byId("grid"), byId("grid-readout"), (row) => selectTask(shown.tasks[row]));
  byId("step").addEventListener("input", (event) => {
    stopPlaying();
    showFrame(Number(event.target.value));
  });
  byId("play").addEventListener("click", () => (player ? stopPlaying() : play()));
}

/** Show the groups of another run, at its last step. */
function showGroupsOfRun() {
  stopPlaying();
  const { run } = shown;
  const { history } = run;
  byId("time").hidden = byId("grid-figure").hidden = !history;
  byId("groups-note").textContent = groupsNote(run);
  if (history) byId("step").max = history.steps.length - 1;
  shown.frame = history ? history.steps.length - 1 : 0;
}

function groupsNote(run) {
  const numbers = run.usedBranches.join(", ");
  const left =
    run.usedBranches.length < run.branches
      ? ` Branches have the numbers that they had at the start; those that are left (${numbers}) ` +
        "are the groups of the exported model, in this order."
      : "";
  if (!run.history) return `The recipe ${run.recipe} gave the groups before the first step.${left}`;
  if (run.history.recorded) return `Each task ends on one branch.${left}`;
  return `This run recorded no probabilities: all live heads of a task count the same.${left}`;
}

function showFrame(frame) {
  shown.frame = frame;
  showGroups();
}

/** Show the groups at the chosen step, for the tasks that the filter shows. */
function showGroups() {
  const { run, frame } = shown;
  if (run.history) {
    const step = run.history.steps[frame];
    const text = `${step} of ${run.steps}`;
    byId("step").value = frame;
    byId("step").setAttribute("aria-valuetext", `step ${text}`);
    byId("step-text").textContent = text;
    showGrid(run, frame, step);
  }
  showBranches(run, frame);
}

function showGrid(run, frame, step) {
  const { tasks } = shown;
  const breaks = [];
  tasks.forEach((task, row) => {
    if (row && run.chosen[task] !== run.chosen[tasks[row - 1]]) breaks.push(row);
  });
  byId("grid-caption").textContent =
    `Probability of each branch (columns) for ${counted(tasks.length, "task")} (rows, by their branch ` +
    `at the end) after step ${step}; stronger is likelier.`;
  byId("grid").setAttribute(
    "aria-label",
    `Probabilities of ${counted(run.branches, "branch")} for ${counted(tasks.length, "task")} after step ` +
      `${step}. Arrow keys read single values; the lists of branches below hold the same.`,
  );
  showMatrix(grid, {
    rows: tasks.length,
    columns: run.branches,
    breaks,
    square: false,
    hint: "Point at a cell, or use the arrow keys in the picture, to read its value.",
    value: (row, branch) => probability(run, frame, tasks[row], branch),
    rowLabel: (row) => run.specs[tasks[row]].name,
    columnLabel: (branch) => String(branch),
    describe: (row, branch) =>
      `${run.specs[tasks[row]].name}: branch ${branch} has probability ` +
      `${probability(run, frame, tasks[row], branch).toFixed(2)}`,
  });
}

function showBranches(run, frame) {
  const members = new Map();
  for (const task of shown.tasks) {
    const [branch, value] = likeliest(run, frame, task);
    if (!members.has(branch)) members.set(branch, []);
    members.get(branch).push([task, value]);
  }
  const branches = [...members.keys()].sort((a, b) => a - b);
  byId("branches").replaceChildren(...branches.map((branch) => branchBox(run, branch, members.get(branch))));
}

function branchBox(run, branch, members) {
  const id = `branch-${branch}`;
  const chips = members.map(([task, value]) => {
    const { name } = run.specs[task];
    const label = `${name}, probability ${value.toFixed(2)}`;
    return element(
      "button",
      {
        type: "button",
        class: "chip",
        style: `--p: ${value.toFixed(3)}`,
        title: label,
        "aria-label": label,
        "aria-current": shown.selected === task ? "true" : null,
        onclick: () => selectTask(task),
      },
      name,
    );
  });
  const count = element("small", {}, ` ${counted(members.length, "task")}`);
  return element(
    "section",
    { "aria-labelledby": id },
    element("h4", { id }, `Branch ${branch}`, count),
    element("div", { class: "chips" }, ...chips),
  );
}

function play() {
  const last = shown.run.history.steps.length - 1;
  const by = Math.max(1, Math.round((last + 1) / PLAYED_FRAMES));
  let frame = shown.frame >= last ? 0 : shown.frame;
  byId("play").textContent = "Pause";
  byId("play").setAttribute("aria-pressed", "true");
  showFrame(frame);
  player = setInterval(() => {
    frame = Math.min(last, frame + by);
    showFrame(frame);
    if (frame === last) stopPlaying();
  }, 1000 * FRAME_SECONDS);
}

function stopPlaying() {
  clearInterval(player);
  player = null;
  byId("play").textContent = "Play";
  byId("play").setAttribute("aria-pressed", "false");
}
