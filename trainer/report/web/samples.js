// Predictions of a few samples beside their labels.

const FIRST_VALUES = 20; // rows of a sample before all are asked for

function showSamples() {
  const { run } = shown;
  const { samples } = run;
  const list = byId("sample-list");
  list.replaceChildren();
  if (!samples) {
    byId("samples-note").textContent = run.no_data;
    return;
  }
  const left = samples.left_out.length
    ? " Left out, because their pictures would make the page too large or their kind cannot be drawn: " +
      `${samples.left_out.join(", ")}.`
    : "";
  byId("samples-note").textContent =
    "Samples of the evaluation split, predicted by the newest checkpoint. A probability is in " +
    `parentheses.${left}`;
  const visible = shown.tasks.map((task) => run.specs[task].name);
  list.append(...samples.samples.map((sample) => sampleBox(sample, visible)));
}

function sampleBox(sample, visible) {
  const values = visible.filter((name) => name in sample.values);
  const pictures = visible.filter((name) => name in sample.pictures);
  const body = element("div");
  if (pictures.length) {
    body.append(element("div", { class: "pictures" }, ...pictures.map((name) => pair(name, sample.pictures[name]))));
  }
  if (values.length) body.append(valueTable(sample, values));
  if (!values.length && !pictures.length) body.append(element("p", {}, "No task matches the filter."));
  return element(
    "div",
    { class: "sample" },
    element("figure", {}, element("img", { src: sample.image, alt: "" }), element("figcaption", {}, sample.key)),
    body,
  );
}

function pair(name, [prediction, label, caption]) {
  const right = label ? element("img", { src: label, alt: `label of ${name}` }) : element("span", {}, "no label");
  const left = element("img", { src: prediction, alt: `prediction of ${name}` });
  const text = `${name}: prediction, label${caption ? ` (${caption})` : ""}`;
  return element("figure", {}, element("div", {}, left, right), element("figcaption", {}, text));
}

function valueTable(sample, names) {
  const body = element("tbody");
  const head = ["Task", "Prediction", "Label"].map((title) => element("th", { scope: "col" }, title));
  const region = element(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": `Values of ${sample.key}` },
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), body),
  );
  const fill = (count) => body.replaceChildren(...names.slice(0, count).map((name) => valueRow(name, sample.values[name])));
  fill(FIRST_VALUES);
  if (names.length <= FIRST_VALUES) return region;
  const more = element("button", { type: "button" }, `Show all ${names.length} tasks`);
  more.addEventListener("click", () => {
    fill(names.length);
    more.remove();
  });
  return element("div", {}, region, element("div", { class: "pager" }, more));
}

function valueRow(name, [prediction, label, agrees]) {
  const mark = agrees === null ? "" : agrees ? " ✓" : " ✗ wrong";
  const kind = agrees === null ? null : agrees ? "good" : "bad";
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", {}, element("span", { class: kind }, `${prediction}${mark}`)),
    element("td", {}, label ?? element("span", { class: "muted" }, "no label")),
  );
}
