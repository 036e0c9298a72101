// Elements and numbers. All text becomes a text node, so that no name is read as HTML.

/** Return a new element with attributes and children, which are elements or texts. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Return a new SVG element with attributes and children. */
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(node, attributes);
  node.append(...children);
  return node;
}

function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
}

/** Return the element of the page with an id. */
function byId(id) {
  return document.getElementById(id);
}

/** Return a number with a few significant digits, without needless zeros; "–" for none. */
function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const rounded = Number(value.toPrecision(digits));
  if (rounded !== 0 && (Math.abs(rounded) >= 1e6 || Math.abs(rounded) < 1e-4)) {
    return rounded.toExponential();
  }
  return String(rounded);
}

/** Return a change in percent with its sign. */
function percent(value) {
  if (value === null || value === undefined) return "–";
  return `${value > 0 ? "+" : ""}${Number(value.toPrecision(3))} %`;
}

/** Return a count with its noun, as in "1 task" or "5 tasks". */
function counted(count, noun) {
  if (count === 1) return `1 ${noun}`;
  return `${count} ${noun}${noun.endsWith("h") ? "es" : "s"}`;
}
