// The evidence for the branch of every task: its margin over the other branches, and its firmness.

let showEvidence = null;

/** Make the table for another run. */
function showEvidenceOfRun() {
  const { run } = shown;
  const { evidence } = run;
  const known = !evidence.missing;
  byId("evidence-note").replaceChildren(
    ...(known ? [...evidence.sentences, ...evidenceMeanings(evidence)] : [evidence.missing]).map((text) =>
      element("p", {}, text),
    ),
  );
  byId("evidence-table").hidden = !known;
  showEvidence = known ? evidenceTable(run) : null;
}

function evidenceMeanings({ margin, firmness, errors }) {
  const meanings = [];
  if (margin.some((value) => value !== null)) {
    meanings.push(
      "Margin: how far a task's loss is below that on the best other branch, on the same batches, in " +
        `percent of the latter; the bars are ${errors} standard errors wide on each side. A branch that ` +
        "trains a task gets better at it: a margin shows that the branches differ, not that these groups " +
        "beat others, which dmtg compare measures.",
    );
  }
  if (firmness.some((value) => value !== null)) {
    meanings.push(
      "Firmness: how much of a task's group is the same when the groups are formed from resampled steps " +
        "of the warm-up, from 0 to 1.",
    );
  }
  return meanings;
}

function evidenceTable(run) {
  const { margin, error, significant, firmness, errors } = run.evidence;
  const half = (task) => (error[task] === null ? null : errors * error[task]);
  // A few tasks with large errors must not make the others too small to be seen.
  const ends = margin.flatMap((value, task) => (value === null ? [] : [Math.abs(value) + (half(task) ?? 0)]));
  const widest = 1.5 * (ends.sort((a, b) => a - b)[Math.floor(ends.length / 2)] ?? 0);
  const columns = [
    { title: "Task", value: (task) => run.specs[task].name, cell: nameButton },
    { title: "Branch", number: true, value: (task) => run.chosen[task], cell: (task) => String(run.chosen[task]) },
  ];
  if (significant.some((value) => value !== null)) {
    columns.push(
      { title: "Margin", number: true, value: (task) => margin[task], cell: (task) => percent(margin[task]) },
      {
        title: "Standard error",
        number: true,
        value: (task) => error[task],
        cell: (task) => (error[task] === null ? "–" : `${number(error[task], 2)} %`),
      },
      {
        title: "Interval",
        cell: (task) => (margin[task] === null ? "–" : intervalPicture({ mean: margin[task], half: half(task) }, widest)),
      },
      { title: "Verdict", value: (task) => marginVerdict(run, task), cell: (task) => marginCell(run, task) },
    );
  }
  if (firmness.some((value) => value !== null)) {
    columns.push({ title: "Firmness", number: true, value: (task) => firmness[task], cell: (task) => firmnessBar(firmness[task]) });
  }
  return sortedTable(byId("evidence-table"), "Evidence for the branch of each task", columns, () => shown.tasks);
}

/** Return in words whether a margin may be chance. */
function marginVerdict({ evidence }, task) {
  const { margin, error, significant, errors } = evidence;
  if (significant[task] === null) return "not compared";
  if (significant[task]) return "better beyond chance";
  return margin[task] !== null && margin[task] < -errors * error[task] ? "worse beyond chance" : "may be chance";
}

function marginCell(run, task) {
  const verdict = marginVerdict(run, task);
  const colour = verdict.startsWith("better") ? "good" : verdict.startsWith("worse") ? "bad" : null;
  return element("span", { class: colour }, verdict);
}

function firmnessBar(value) {
  if (value === null) return "–";
  return element("span", { class: "firmness", style: `--p: ${value}` }, value.toFixed(2));
}
