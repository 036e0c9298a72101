// The page: its run, its filter, and when its parts are shown again.

const SECTIONS = [
  ["summary", "Summary"],
  ["comparison", "Comparison"],
  ["groups", "Groups"],
  ["evidence", "Evidence"],
  ["affinity", "Affinities"],
  ["training", "Training"],
  ["tasks", "Tasks"],
  ["speed", "Speed and memory"],
  ["data", "Data problems"],
  ["samples", "Samples"],
  ["config", "Configuration"],
];

function start() {
  byId("title").textContent = content.title;
  const version = content.version ? ` by dmtg ${content.version}` : "";
  byId("about").textContent = `Report of ${counted(content.runs.length, "run")}, written ${content.written}${version}.`;
  startComparison();
  const sections = SECTIONS.filter(([id]) => !byId(id).hidden);
  byId("sections").append(...sections.map(([id, name]) => element("li", {}, element("a", { href: `#${id}` }, name))));
  byId("run").append(...content.runs.map((run, n) => element("option", { value: n }, run.name)));
  byId("run-label").hidden = content.runs.length === 1;
  byId("run").addEventListener("change", (event) => showRun(content.runs[Number(event.target.value)]));
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", showFiltered);
  byId("branch").addEventListener("change", showFiltered);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showInOtherColours);
  startGrouping();
  startAffinity();
  startTasks();
  showRun(content.runs[0]);
}

function showRun(run) {
  shown.run = prepared(run);
  shown.selected = null;
  const branches = run.usedBranches.map((branch) => {
    const size = run.chosen.filter((own) => own === branch).length;
    return element("option", { value: branch }, `${branch} (${counted(size, "task")})`);
  });
  byId("branch").replaceChildren(element("option", { value: "" }, "all"), ...branches);
  showSummary();
  showGroupsOfRun();
  showTraining();
  showSpeed();
  showProblems();
  byId("config-text").textContent = run.config;
  filterTasks();
  showTasksOfRun();
  showEvidenceOfRun();
  showFiltered();
}

/** Choose the tasks that the filter shows. */
function filterTasks() {
  const { run } = shown;
  const query = byId("search").value.trim().toLowerCase();
  const branch = byId("branch").value;
  shown.tasks = run.order.filter(
    (task) => run.lowerNames[task].includes(query) && (branch === "" || run.chosen[task] === Number(branch)),
  );
  byId("count").textContent = `${shown.tasks.length} of ${counted(run.specs.length, "task")}`;
}

/** Show all parts that depend on the filter. */
function showFiltered() {
  filterTasks();
  showGroups();
  showEvidence?.();
  showAffinity();
  showTaskTable();
  showDetail();
  showSamples();
  showDifferences?.();
}

function showProblems() {
  const { run } = shown;
  const items = run.problems.map(({ level, text }) =>
    element("li", {}, element("strong", { class: level === "warning" ? "bad" : null }, `${level}: `), text),
  );
  if (!items.length) items.push(element("li", {}, "The run recorded no problem."));
  if (run.no_data) items.push(element("li", {}, run.no_data));
  byId("problems").replaceChildren(...items);
}

function showInOtherColours() {
  redrawCharts();
  paint(grid);
  paint(affinityMap);
}

start();
