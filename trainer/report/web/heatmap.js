// A picture of a matrix: one cell for a row and a column, stronger for a higher value.
// A cell is read with the pointer, or with the arrow keys while the picture has the focus.

const LABEL_ROWS = 60; // rows up to which they are labelled
const MAX_HEIGHT = 640; // pixels of the cells

/**
 * Return a picture in a canvas.
 *
 * readout: element that gets the description of the cell.
 * onSelect: called with row and column when a cell is clicked, or Enter is pressed on it.
 */
function heatmap(canvas, readout, onSelect) {
  const picture = { canvas, readout, matrix: null, cursor: null };
  canvas.addEventListener("pointermove", (event) => pointAt(picture, cellAt(picture, event)));
  canvas.addEventListener("pointerleave", () => pointAt(picture, null));
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(picture, event);
    if (cell) onSelect(...cell);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && picture.cursor) onSelect(...picture.cursor);
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const by = move[event.key];
    if (!by || !picture.matrix.rows) return;
    event.preventDefault();
    const [row, column] = picture.cursor ?? [-Math.max(0, by[0]), -Math.max(0, by[1])];
    const { rows, columns } = picture.matrix;
    pointAt(picture, [clamp(row + by[0], rows), clamp(column + by[1], columns)]);
  });
  new ResizeObserver(() => paint(picture)).observe(canvas.parentElement);
  return picture;
}

function clamp(value, length) {
  return Math.max(0, Math.min(length - 1, value));
}

/**
 * Show a matrix.
 *
 * matrix: `rows` and `columns` (counts), `value(row, column)` from 0 to 1, `rowLabel(row)`,
 * `columnLabel(column)`, `describe(row, column)`, `breaks` (rows before which a line is drawn),
 * `square` (whether rows and columns are the same, so that breaks apply to both).
 */
function showMatrix(picture, matrix) {
  picture.matrix = matrix;
  if (picture.cursor && (picture.cursor[0] >= matrix.rows || picture.cursor[1] >= matrix.columns)) {
    picture.cursor = null;
  }
  paint(picture);
  describeCursor(picture);
}

function layoutOf({ canvas, matrix }) {
  const width = canvas.parentElement.clientWidth;
  const labelled = matrix.rows <= LABEL_ROWS;
  const left = labelled ? Math.min(180, Math.round(width * 0.38)) : 0;
  const top = matrix.columnLabel ? 20 : 0;
  const most = matrix.columns * (matrix.square ? 44 : 140);
  const wide = Math.max(1, Math.min(width - left, most));
  const row = matrix.square ? Math.max(20, Math.min(44, wide / matrix.columns)) : 22;
  let height = matrix.square && !labelled ? wide : matrix.rows * (labelled ? row : 6);
  if (!labelled) height = Math.min(height, MAX_HEIGHT);
  return { width, left, top, wide, height: Math.max(height, 1) };
}

function paint(picture) {
  const { canvas, matrix } = picture;
  if (!matrix || !canvas.parentElement.clientWidth) return;
  const { width, left, top, wide, height } = layoutOf(picture);
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((top + height) * ratio);
  canvas.style.height = `${top + height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, top + height);
  if (!matrix.rows || !matrix.columns) return;
  pen.imageSmoothingEnabled = false; // sharp edges of cells that are larger than a pixel
  pen.drawImage(reduced(cellsOf(matrix), wide * ratio, height * ratio), left, top, wide, height);
  paintLines(pen, matrix, { left, top, wide, height });
  paintLabels(pen, matrix, { left, top, wide, height });
  if (picture.cursor) {
    const [row, column] = picture.cursor;
    pen.strokeStyle = colour("text");
    pen.lineWidth = 2;
    const size = [wide / matrix.columns, height / matrix.rows];
    pen.strokeRect(left + column * size[0], top + row * size[1], Math.max(3, size[0]), Math.max(3, size[1]));
  }
}

/** Return a picture with one pixel for a cell. */
function cellsOf(matrix) {
  const cells = element("canvas", { width: matrix.columns, height: matrix.rows });
  const pen = cells.getContext("2d");
  const image = pen.createImageData(matrix.columns, matrix.rows);
  const [red, green, blue] = colour("cell").split(",").map(Number);
  const back = colour("panel").match(/\w\w/g).map((part) => parseInt(part, 16));
  let at = 0;
  for (let row = 0; row < matrix.rows; row += 1) {
    for (let column = 0; column < matrix.columns; column += 1) {
      const value = matrix.value(row, column);
      image.data[at] = back[0] + (red - back[0]) * value;
      image.data[at + 1] = back[1] + (green - back[1]) * value;
      image.data[at + 2] = back[2] + (blue - back[2]) * value;
      image.data[at + 3] = 255;
      at += 4;
    }
  }
  pen.putImageData(image, 0, 0);
  return cells;
}

/** Return a picture that is at most so wide and high, with averages where cells are smaller. */
function reduced(cells, wide, height) {
  const size = { width: Math.min(cells.width, Math.ceil(wide)), height: Math.min(cells.height, Math.ceil(height)) };
  if (size.width === cells.width && size.height === cells.height) return cells;
  const small = element("canvas", size);
  const pen = small.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(cells, 0, 0, size.width, size.height);
  return small;
}

function paintLines(pen, matrix, { left, top, wide, height }) {
  pen.strokeStyle = colour("text");
  pen.lineWidth = 1;
  for (const row of matrix.breaks) {
    const y = Math.round(top + (row * height) / matrix.rows) + 0.5;
    pen.strokeRect(left, y, wide, 0);
    const x = Math.round(left + (row * wide) / matrix.columns) + 0.5;
    if (matrix.square) pen.strokeRect(x, top, 0, height);
  }
  if (matrix.square || wide / matrix.columns < 8) return;
  pen.strokeStyle = colour("page");
  for (let column = 1; column < matrix.columns; column += 1) {
    pen.strokeRect(Math.round(left + (column * wide) / matrix.columns), top, 0, height);
  }
}

function paintLabels(pen, matrix, { left, top, wide, height }) {
  pen.fillStyle = colour("text");
  pen.textBaseline = "middle";
  pen.font = "13px system-ui, sans-serif";
  if (left) {
    pen.textAlign = "right";
    const step = height / matrix.rows;
    for (let row = 0; row < matrix.rows; row += 1) {
      pen.fillText(fitted(pen, matrix.rowLabel(row), left - 8), left - 6, top + (row + 0.5) * step);
    }
  }
  if (top) {
    pen.textAlign = "center";
    const step = wide / matrix.columns;
    const every = Math.max(1, Math.ceil(26 / step));
    for (let column = 0; column < matrix.columns; column += every) {
      pen.fillText(matrix.columnLabel(column), left + (column + 0.5) * step, top / 2);
    }
  }
}

/** Return a text that is cut so that it is not wider than `width`. */
function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > width) length -= 1;
  return `${text.slice(0, length)}…`;
}

function cellAt(picture, event) {
  const { matrix } = picture;
  if (!matrix) return null;
  const { left, top, wide, height } = layoutOf(picture);
  const row = Math.floor(((event.offsetY - top) / height) * matrix.rows);
  const column = Math.floor(((event.offsetX - left) / wide) * matrix.columns);
  const inside = row >= 0 && row < matrix.rows && column >= 0 && column < matrix.columns;
  return inside ? [row, column] : null;
}

function pointAt(picture, cell) {
  picture.cursor = cell;
  paint(picture);
  describeCursor(picture);
}

function describeCursor({ cursor, readout, matrix }) {
  readout.textContent = cursor ? matrix.describe(...cursor) : matrix.hint;
}
