// Charts by Vega-Lite: specifications in the colours of the page.

const charts = []; // all charts, to draw them again in other colours

/** Return a colour of the style sheet. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Return what all charts have in common. */
function chartConfig() {
  const [text, muted, line] = [colour("text"), colour("muted"), colour("line")];
  const axis = { labelColor: text, titleColor: text, gridColor: line, domainColor: muted };
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...axis, tickColor: muted, titleFontWeight: "normal", labelLimit: 90, gridOpacity: 0.6 },
    legend: { labelColor: text, titleColor: text, orient: "bottom", labelLimit: 280, title: null },
    range: { category: [colour("accent"), colour("second"), colour("third"), muted] },
    line: { strokeWidth: 1.75 },
    rule: { strokeWidth: 1.5, strokeDash: [6, 4] },
  };
}

/**
 * Return the specification of lines over the steps.
 *
 * series: of {name, steps, values, curve}; null values are gaps.
 * levels: of {name, value}, drawn as horizontal rules.
 */
function lineChart(series, levels, { title, log = false, zero = true, integer = false }) {
  const rows = series.flatMap((line) =>
    line.steps.map((step, n) => ({ step, value: line.values[n], series: line.name })),
  );
  const usable = log && rows.every((row) => row.value === null || row.value > 0);
  const names = [...series, ...levels].map((line) => line.name);
  const y = {
    field: "value",
    type: "quantitative",
    title: usable ? `${title} (log scale)` : title,
    scale: usable ? { type: "log", nice: false } : { zero, nice: true },
    axis: integer ? { tickMinStep: 1, format: "d" } : { tickCount: 5 },
  };
  const colours = {
    field: "series",
    type: "nominal",
    scale: { domain: names },
    legend: names.length > 1 ? {} : null,
  };
  const step = { field: "step", type: "quantitative", title: "step", scale: { zero: false, nice: false } };
  const interpolate = series[0]?.curve ?? "linear";
  const layer = [
    {
      data: { values: rows },
      mark: { type: "line", interpolate, point: rows.length === series.length, tooltip: true },
      encoding: { x: { ...step, axis: { format: "~s", tickCount: 5 } }, y, color: colours },
    },
  ];
  if (levels.length) {
    layer.push({
      data: { values: levels.map((level) => ({ value: level.value, series: level.name })) },
      mark: { type: "rule", tooltip: true },
      encoding: { y, color: colours },
    });
  }
  return { layer };
}

/** Add a chart to a container. alt: what a reader who does not see it should know. */
function addChart(container, caption, specification, alt) {
  const place = element("div", { class: "chart" });
  container.append(element("figure", {}, element("figcaption", {}, caption), place));
  const chart = { place, specification, alt };
  charts.push(chart);
  drawChart(chart);
}

function drawChart(chart) {
  const { place, specification, alt } = chart;
  chart.result?.finalize();
  const spec = {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    width: "container",
    height: 180,
    autosize: { type: "fit", contains: "padding" },
    description: alt,
    ...specification,
    config: chartConfig(),
  };
  // `ast` lets Vega interpret its expressions: the page allows no code that is made from text.
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" } };
  vegaEmbed(place, spec, options)
    .then((result) => (chart.result = result))
    .catch((error) => console.error(error));
}

/** Remove the charts of a container, before it is filled again. */
function clearCharts(container) {
  for (let n = charts.length - 1; n >= 0; n -= 1) {
    if (container.contains(charts[n].place)) {
      charts[n].result?.finalize();
      charts.splice(n, 1);
    }
  }
  container.replaceChildren();
}

/** Draw all charts again, in the colours of the scheme that the reader has chosen. */
function redrawCharts() {
  charts.forEach(drawChart);
}
