// The most important facts of a run.

function showSummary() {
  const { run } = shown;
  const facts = [
    ["State", stateOf(run), run.error],
    ["Step", `${run.step} of ${run.steps}`, startsOf(run)],
    ["Recipe", run.recipe, `seed ${run.seed}`],
    ["Tasks", String(run.specs.length), kindsOf(run)],
    ["Groups", String(run.usedBranches.length), `of ${counted(run.branches, "branch")} at the start`],
    ...firmGroups(run),
    ...changes(run),
    ["Data", run.dataset || "–", null],
  ];
  byId("facts").replaceChildren(
    ...facts.map(([name, value, more]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value, more && element("small", {}, more))),
    ),
  );
}

function stateOf(run) {
  return run.state === "unknown" && run.step === run.steps ? "finished" : run.state;
}

function startsOf(run) {
  const short = run.hours !== null && run.hours < 1;
  const hours = run.hours === null ? null
    : short ? `${number(60 * run.hours, 2)} minutes` : `${number(run.hours, 3)} hours`;
  const starts = run.starts > 1 ? `in ${run.starts} starts` : null;
  const processes = run.processes > 1 ? `on ${run.processes} processes` : null;
  return [hours, starts, processes].filter(Boolean).join(" ") || null;
}

function kindsOf(run) {
  const counts = new Map();
  for (const { kind } of run.specs) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return [...counts].map(([kind, count]) => `${count} ${kind.replaceAll("_", " ")}`).join(", ");
}

/** Return whether the groups are firm, if that is known. */
function firmGroups({ evidence }) {
  const { agreement, firm } = evidence;
  if ((agreement ?? null) === null) return [];
  const more = `agreement with resampled steps ${agreement.toFixed(2)}, of at most 1`;
  return [["Firm groups", element("span", { class: firm ? "good" : "bad" }, firm ? "yes" : "no"), more]];
}

/** Return the mean changes against the constant prediction and against the reference. */
function changes(run) {
  const found = [];
  for (const [change, name] of [
    [run.change_constant, "the constant prediction"],
    [run.change_reference, content.reference_name],
  ]) {
    if (!change || !name) continue;
    const tasks =
      `mean over ${change.tasks} of ${counted(run.specs.length, "task")}; positive is better, ` +
      `as it is for ${change.better}`;
    found.push([`Change against ${name}`, percent(change.mean), tasks]);
  }
  return found;
}
