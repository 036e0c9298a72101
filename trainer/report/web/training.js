// Curves of the whole run: heads, temperature, learning rate, loss, speed and memory.

function showTraining() {
  const { run } = shown;
  const { curves } = run;
  const place = byId("training-charts");
  clearCharts(place);
  const line = (name, values, curve) => ({ name, steps: curves.steps, values, curve });
  addChart(
    place,
    "Heads alive",
    lineChart([line("heads", curves.heads, "step-after")], [{ name: "one for each task", value: run.specs.length }], {
      title: "heads",
      integer: true,
    }),
    `Heads alive over the steps, from ${curves.heads[0]} to ${curves.heads.at(-1)}`,
  );
  addChart(
    place,
    "Branches in use",
    lineChart([line("branches", curves.branches, "step-after")], [], { title: "branches", integer: true }),
    `Branches in use over the steps, from ${curves.branches[0]} to ${curves.branches.at(-1)}`,
  );
  addChart(
    place,
    "Mean training loss",
    lineChart([line("loss", curves.loss)], [], { title: "loss", log: true }),
    `Mean training loss over the steps, from ${number(curves.loss[0])} to ${number(curves.loss.at(-1))}`,
  );
  if (run.history) {
    addChart(
      place,
      "Temperature of the distributions",
      lineChart([line("temperature", curves.temperature)], [], { title: "temperature" }),
      `Temperature over the steps, from ${number(curves.temperature[0])} to ${number(curves.temperature.at(-1))}`,
    );
  }
  addChart(
    place,
    "Learning rate",
    lineChart([line("learning rate", curves.lr)], [], { title: "learning rate" }),
    `Learning rate over the steps, from ${number(curves.lr[0])} to ${number(curves.lr.at(-1))}`,
  );
}

function showSpeed() {
  const { speed } = shown.run;
  const place = byId("speed-charts");
  clearCharts(place);
  byId("speed-note").textContent = speed.steps.length ? speedNote(speed) : "This run has no timing.jsonl.";
  if (!speed.steps.length) return;
  const line = (name, values) => ({ name, steps: speed.steps, values });
  addChart(
    place,
    "Throughput",
    lineChart([line("samples", speed.samples_per_second)], [], { title: "samples per second" }),
    `Samples per second over the steps, median ${number(median(speed.samples_per_second), 3)}`,
  );
  addChart(
    place,
    "Time of a step",
    lineChart(
      [line("whole step", speed.step_seconds), line("waiting for data (slowest process)", speed.data_seconds)],
      [],
      { title: "seconds" },
    ),
    `Seconds of a step, median ${number(median(speed.step_seconds), 3)}, of which waiting for data ` +
      `${number(median(speed.data_seconds), 3)}`,
  );
  const onDevice = speed.device_gib.some((value) => value > 0);
  const memory = [line("process, resident", speed.process_gib)];
  if (onDevice) memory.push(line("GPU, peak so far", speed.device_gib));
  addChart(
    place,
    "Memory of the largest process",
    lineChart(memory, [], { title: "GiB" }),
    `GiB of the largest process over the steps, at most ${number(Math.max(...speed.process_gib), 3)}`,
  );
}

function speedNote(speed) {
  const parts = [`Median ${number(median(speed.samples_per_second), 3)} samples per second`];
  parts.push(`${number(median(speed.step_seconds), 3)} s a step`);
  parts.push(`${number(median(speed.data_seconds), 3)} s of it waiting for data`);
  const share = median(speed.share_of_peak);
  if (share !== null) parts.push(`${number(100 * share, 3)} % of the device's peak`);
  return `${parts.join(", ")}.`;
}

function median(values) {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  return known.length ? known[known.length >> 1] : null;
}
