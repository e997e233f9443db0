"use strict";

// The map of the report. First functions on arrays, which need no document; then the map itself.

// ------------------------------------------------------------------------------------------ decoding

// The arrays described by fields (name -> {type, bytes}) from one buffer, in the same order.
function split(buffer, fields) {
  const types = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
  const arrays = {};
  let start = 0;
  for (const [name, field] of Object.entries(fields)) {
    const part = buffer.slice(start, start + field.bytes);
    arrays[name] = field.type === "json" ? JSON.parse(new TextDecoder().decode(part)) : new types[field.type](part);
    start += field.bytes;
  }
  return arrays;
}

async function decode(base64, fields) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return split(await new Response(inflated).arrayBuffer(), fields);
}

const missing = (codes) => 2 ** (8 * codes.BYTES_PER_ELEMENT) - 1;

// ---------------------------------------------------------------------------------------------- colors

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const packed = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r; // int32, as the bytes of ImageData
const hexOf = ([r, g, b]) => "#" + [r, g, b].map((part) => part.toString(16).padStart(2, "0")).join("");

// n colors between equally spaced ones, as channels.
function ramp(colors, n) {
  const stops = colors.map(channels);
  return Array.from({ length: n }, (_, i) => {
    const at = (i / (n - 1)) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    return stops[left].map((part, c) => Math.round(part + (at - left) * (stops[left + 1][c] - part)));
  });
}

// --------------------------------------------------------------------------------------------- drawing

const FINENESS = 4; // positions of a disc between two pixels, in x and in y

// The pixels of a disc whose center lies at (u, v) in a pixel, for each position (u, v) in quarters of a pixel:
// offsets dx, dy and at = dy * width + dx from that pixel, and the share of the pixel that is covered, 1 to 256, times
// the opacity. The first ones, full in number, are covered completely.
function discs(radius, width, opacity = 1) {
  const reach = Math.ceil(radius + 1);
  return Array.from({ length: FINENESS ** 2 }, (_, position) => {
    const u = ((position % FINENESS) + 0.5) / FINENESS;
    const v = (Math.floor(position / FINENESS) + 0.5) / FINENESS;
    const pixels = [];
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const distance = Math.hypot(dx + 0.5 - u, dy + 0.5 - v);
        const share = Math.round(256 * opacity * Math.min(1, radius + 0.5 - distance));
        if (share > 0) pixels.push([dx, dy, dy * width + dx, share]);
      }
    }
    pixels.sort((a, b) => b[3] - a[3]);
    const [dx, dy, at, share] = [0, 1, 2, 3].map((k) => Int32Array.from(pixels, (pixel) => pixel[k]));
    return { dx, dy, at, share, full: pixels.filter((pixel) => pixel[3] === 256).length };
  });
}

// Draw discs of one radius (pixels) into opaque pixels (Int32Array, width x height), in the given order.
// camera: {x, y, scale}; paint: packed color of each point, 0 is not drawn.
function rasterize(pixels, width, height, xs, ys, order, paint, camera, radius, opacity = 1) {
  const left = width / 2 - camera.x * camera.scale;
  const top = height / 2 - camera.y * camera.scale;
  const reach = Math.ceil(radius + 1);
  const masks = discs(radius, width, opacity);
  for (let j = 0; j < order.length; j++) {
    const i = order[j];
    const color = paint[i];
    if (color === 0) continue;
    const x = xs[i] * camera.scale + left;
    const y = ys[i] * camera.scale + top;
    const column = Math.floor(x);
    const row = Math.floor(y);
    if (column < -reach || row < -reach || column >= width + reach || row >= height + reach) continue;
    if (radius < 0.75) {
      const at = row * width + column;
      if (column >= 0 && row >= 0 && column < width && row < height) pixels[at] = mixed(color, pixels[at], Math.round(256 * opacity));
      continue;
    }
    const mask = masks[Math.floor((y - row) * FINENESS) * FINENESS + Math.floor((x - column) * FINENESS)];
    const { at, share, full } = mask;
    const center = row * width + column;
    if (column >= reach && row >= reach && column < width - reach && row < height - reach) {
      for (let k = 0; k < full; k++) pixels[center + at[k]] = color;
      for (let k = full; k < at.length; k++) pixels[center + at[k]] = mixed(color, pixels[center + at[k]], share[k]);
      continue;
    }
    for (let k = 0; k < at.length; k++) {
      const [px, py] = [column + mask.dx[k], row + mask.dy[k]];
      if (px >= 0 && px < width && py >= 0 && py < height) pixels[center + at[k]] = mixed(color, pixels[center + at[k]], share[k]);
    }
  }
}

// A share (1 to 256) of an opaque color and the rest of another; red and blue are mixed in one number.
function mixed(color, below, share) {
  const rest = 256 - share;
  const redBlue = (Math.imul(color & 0xff00ff, share) + Math.imul(below & 0xff00ff, rest)) >>> 8;
  const green = (((color >>> 8) & 255) * share + ((below >>> 8) & 255) * rest) >>> 8;
  return (255 << 24) | (redBlue & 0xff00ff) | (green << 8);
}

// Numbers 0..n-1 in a fixed random order, so that no label covers the others.
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let state = 1;
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// ------------------------------------------------------------------------------------------- searching

// Index of points by the cells of a grid, with about two points a cell.
class Grid {
  constructor(xs, ys) {
    this.xs = xs;
    this.ys = ys;
    const n = xs.length;
    let [x0, y0, x1, y1] = bounds(xs, ys);
    this.x0 = x0;
    this.y0 = y0;
    this.cell = Math.max(Math.sqrt((Math.max(x1 - x0, 1e-9) * Math.max(y1 - y0, 1e-9) * 2) / n), (x1 - x0 + y1 - y0) / 4000, 1e-9);
    this.across = Math.floor((x1 - x0) / this.cell) + 1;
    this.down = Math.floor((y1 - y0) / this.cell) + 1;
    this.starts = new Uint32Array(this.across * this.down + 1);
    const cells = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      cells[i] = this.row(ys[i]) * this.across + this.column(xs[i]);
      this.starts[cells[i] + 1]++;
    }
    for (let c = 0; c < this.across * this.down; c++) this.starts[c + 1] += this.starts[c];
    const next = this.starts.slice();
    this.points = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.points[next[cells[i]]++] = i;
  }

  column(x) {
    return Math.min(this.across - 1, Math.max(0, Math.floor((x - this.x0) / this.cell)));
  }

  row(y) {
    return Math.min(this.down - 1, Math.max(0, Math.floor((y - this.y0) / this.cell)));
  }

  // The nearest point that is accepted and within reach of x, y; -1 if there is none.
  nearest(x, y, reach, accepts = () => true) {
    let best = -1;
    let least = reach * reach;
    const [c0, c1] = [this.column(x - reach), this.column(x + reach)];
    const [r0, r1] = [this.row(y - reach), this.row(y + reach)];
    for (let r = r0; r <= r1; r++) {
      for (let c = c0; c <= c1; c++) {
        const cell = r * this.across + c;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k++) {
          const i = this.points[k];
          const d2 = (this.xs[i] - x) ** 2 + (this.ys[i] - y) ** 2;
          if (d2 <= least && accepts(i)) [best, least] = [i, d2];
        }
      }
    }
    return best;
  }
}

function bounds(xs, ys) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < xs.length; i++) {
    x0 = Math.min(x0, xs[i]);
    x1 = Math.max(x1, xs[i]);
    y0 = Math.min(y0, ys[i]);
    y1 = Math.max(y1, ys[i]);
  }
  return [x0, y0, x1, y1];
}

// Whether a point is inside the polygon with corners at px, py (even-odd rule).
function inPolygon(x, y, px, py) {
  let inside = false;
  for (let i = 0, j = px.length - 1; i < px.length; j = i++) {
    if (py[i] > y !== py[j] > y && x < ((px[j] - px[i]) * (y - py[i])) / (py[j] - py[i]) + px[i]) inside = !inside;
  }
  return inside;
}

// ------------------------------------------------------------------------------------------------ CSV

const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
const csv = (rows) => rows.map((row) => row.map(cell).join(",") + "\n").join("");

// A coordinate with the digits that its quantization supports.
const coordinate = (low, step, level) => (low + step * level).toFixed(Math.min(12, Math.max(0, Math.ceil(-Math.log10(step)))));

// ------------------------------------------------------------------------------------------- scale bar

// The longest of 1, 2, 5 times a power of ten micrometers that takes at most so many pixels, and its label.
function scaleBar(pixelsPerMicrometer, most) {
  const limit = most / pixelsPerMicrometer;
  const power = 10 ** Math.floor(Math.log10(limit));
  const length = power * [5, 2, 1].find((step) => step * power <= limit * 1.000001);
  const [unit, size] = [["mm", 1000], ["µm", 1], ["nm", 0.001]].find(([, size]) => length >= 0.999 * size) ?? ["nm", 0.001];
  return { length, pixels: length * pixelsPerMicrometer, label: `${Number((length / size).toPrecision(6))} ${unit}` };
}

// ----------------------------------------------------------------------------------------- one drawing

const FRAME = 12; // milliseconds that a drawing may take to be repeated while the map moves
const LEAST_REACH = 12; // pixels from the pointer to the spot that it points to

// Points on a canvas that can be zoomed and moved.
class Plot {
  constructor(canvas, xs, ys, { diameter, frame, report, labels = [], overlapping = false, images = [], scaled = false }) {
    Object.assign(this, { marks: canvas, xs, ys, diameter, frame, report, labels, images, scaled });
    this.spots = canvas.previousElementSibling;
    this.context = this.spots.getContext("2d", { willReadFrequently: images.length > 0 });
    this.hint = canvas.parentElement.querySelector(".hint");
    this.grid = new Grid(xs, ys);
    this.order = overlapping ? shuffled(xs.length) : this.grid.points;
    this.camera = { x: 0, y: 0, scale: 1 };
    this.pointers = new Map();
    this.path = null;
    this.keyboard = false;
    this.budget = FRAME;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    canvas.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.onUp(event));
    canvas.addEventListener("pointerleave", (event) => {
      // A finger leaves after every tap, which is to show the spot
      if (event.pointerType !== "touch" && !this.pointers.size) this.report.point(-1);
    });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", () => this.leave());
  }

  resize() {
    const { paper } = this.report;
    const box = paper ? this.sheet : this.marks.getBoundingClientRect();
    if (!box.width) return;
    const ratio = paper ? 2 : Math.min(window.devicePixelRatio || 1, 3);
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (width === this.spots.width && height === this.spots.height && this.ratio === ratio) return;
    const first = this.ratio === undefined;
    const grown = first ? 1 : Math.min(width / this.spots.width, height / this.spots.height);
    this.ratio = ratio;
    for (const canvas of [this.spots, this.marks]) [canvas.width, canvas.height] = [width, height];
    this.image = new ImageData(width, height);
    this.pixels = new Int32Array(this.image.data.buffer);
    if (first || !this.moved) this.fit();
    else this.camera.scale *= grown;
    this.draw();
  }

  // Size of the drawing on paper, in CSS pixels.
  get sheet() {
    const [x0, y0, x1, y1] = this.frame;
    return { width: 700, height: Math.round(Math.min(560, Math.max(200, (700 * (y1 - y0)) / Math.max(x1 - x0, 1e-9) + 40))) };
  }

  fit(frame = this.frame) {
    this.moved = frame !== this.frame;
    const [x0, y0, x1, y1] = frame;
    const pad = this.diameter / 2;
    const head = this.labels.length ? 22 * this.ratio : 0; // names of sections above them
    const [width, height] = [this.spots.width - 16 * this.ratio, this.spots.height - 16 * this.ratio - head];
    this.fitted = Math.min(width / (x1 - x0 + 2 * pad), height / (y1 - y0 + 2 * pad));
    this.camera = { x: (x0 + x1) / 2, y: (y0 + y1) / 2 - head / 2 / this.fitted, scale: this.fitted };
    this.touch();
    this.schedule();
  }

  // One finger scrolls the page as long as the whole map is in view.
  touch() {
    const whole = !this.moved && this.report.tool === "pan";
    this.marks.style.touchAction = whole ? "pan-y" : "none";
  }

  zoom(factor, x = this.spots.width / 2, y = this.spots.height / 2) {
    const [wx, wy] = this.world(x, y);
    const scale = Math.min(Math.max(this.camera.scale * factor, this.fitted / 8), this.fitted * 400);
    const ratio = this.camera.scale / scale;
    this.camera = { x: wx + (this.camera.x - wx) * ratio, y: wy + (this.camera.y - wy) * ratio, scale };
    this.move();
  }

  shift(dx, dy) {
    this.camera.x -= dx / this.camera.scale;
    this.camera.y -= dy / this.camera.scale;
    this.move();
  }

  world(x, y) {
    const { camera, spots } = this;
    return [camera.x + (x - spots.width / 2) / camera.scale, camera.y + (y - spots.height / 2) / camera.scale];
  }

  screen(wx, wy) {
    const { camera, spots } = this;
    return [(wx - camera.x) * camera.scale + spots.width / 2, (wy - camera.y) * camera.scale + spots.height / 2];
  }

  // Whether the spots are drawn over images.
  get overImage() {
    return this.images.length > 0 && this.report.image;
  }

  get radius() {
    const diameter = this.overImage ? this.report.meta.diameter_over_image : this.diameter;
    return Math.max((diameter / 2) * this.camera.scale, 0.5 * this.ratio);
  }

  at(event) {
    const box = this.marks.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
  }

  spotAt(x, y, reach = LEAST_REACH * this.ratio) {
    const [wx, wy] = this.world(x, y);
    return this.grid.nearest(wx, wy, Math.max(reach, this.radius) / this.camera.scale, (i) => this.report.shown(i));
  }

  schedule() {
    if (this.ratio === undefined || this.waiting) return;
    this.waiting = requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    if (this.ratio === undefined) return;
    if (this.moving && this.still) this.shiftStill();
    else this.drawSpots();
    this.mark();
  }

  drawSpots() {
    const { paint, quiet } = this.report;
    const { width, height } = this.spots;
    const began = performance.now();
    const opacity = this.overImage ? this.report.opacity : 1;
    if (this.overImage) this.drawImages();
    else this.pixels.fill(packed(channels(this.report.theme.stage)));
    // Spots that are not isolated or selected would hide the tissue
    for (const layer of this.overImage ? [paint] : [quiet, paint])
      rasterize(this.pixels, width, height, this.xs, this.ys, this.order, layer, this.camera, this.radius, opacity);
    this.context.putImageData(this.image, 0, 0);
    this.still = null;
    if (performance.now() - began < this.budget || this.report.paper) return;
    this.buffer ??= document.createElement("canvas");
    [this.buffer.width, this.buffer.height] = [this.spots.width, this.spots.height];
    this.buffer.getContext("2d").drawImage(this.spots, 0, 0);
    this.still = { ...this.camera };
  }

  // The images of the tissue as the pixels on which the spots are drawn.
  drawImages() {
    const { context } = this;
    const { width, height } = this.spots;
    context.fillStyle = this.report.theme.stage;
    context.fillRect(0, 0, width, height);
    for (const { image, box } of this.images) {
      const [x0, y0] = this.screen(box[0], box[1]);
      const [x1, y1] = this.screen(box[2], box[3]);
      context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
    }
    this.pixels.set(new Int32Array(context.getImageData(0, 0, width, height).data.buffer));
  }

  // The last drawing, moved and scaled: what is shown of many spots until the map has come to rest.
  shiftStill() {
    const { buffer, camera, still, spots } = this;
    const ratio = camera.scale / still.scale;
    const x = (still.x - camera.x) * camera.scale + (spots.width - buffer.width * ratio) / 2;
    const y = (still.y - camera.y) * camera.scale + (spots.height - buffer.height * ratio) / 2;
    const { context } = this;
    context.fillStyle = this.report.theme.stage;
    context.fillRect(0, 0, spots.width, spots.height);
    context.drawImage(buffer, x, y, buffer.width * ratio, buffer.height * ratio);
  }

  move() {
    this.moved = true;
    this.moving = true;
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.moving = false;
      this.schedule();
    }, 120);
    this.touch();
    this.schedule();
  }

  // The drawing as an image: browsers do not print a canvas to which pixels were written.
  expose() {
    const both = document.createElement("canvas");
    [both.width, both.height] = [this.spots.width, this.spots.height];
    for (const canvas of [this.spots, this.marks]) both.getContext("2d").drawImage(canvas, 0, 0);
    if (!this.printed) {
      this.printed = new Image();
      this.printed.className = "paper";
      this.printed.alt = this.marks.getAttribute("aria-label");
      this.marks.parentElement.append(this.printed);
    }
    this.printed.src = both.toDataURL();
  }

  // What lies above the spots: names, the scale bar, the spot pointed to, the lasso.
  mark() {
    if (this.ratio === undefined) return;
    const context = this.marks.getContext("2d");
    const { ratio } = this;
    const style = getComputedStyle(this.marks);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    context.font = `600 ${12 * ratio}px ${style.fontFamily}`;
    context.fillStyle = context.strokeStyle = this.report.paper ? "#1c2127" : style.color;
    context.textBaseline = "bottom";
    for (const [i, { name, frame }] of this.labels.entries()) {
      const below = (this.overImage && this.images.find(({ section }) => section === i)?.box[1]) || frame[1];
      const [x0, y] = this.screen(frame[0], Math.min(frame[1], below));
      const [x1] = this.screen(frame[2], frame[1]);
      context.fillText(shortened(context, name, Math.max(x1 - x0, 40 * ratio)), x0, y - this.radius - 3 * ratio);
    }
    if (this.scaled) this.markScale(context, style);
    const i = this.report.pointed;
    if (i >= 0) {
      const [x, y] = this.screen(this.xs[i], this.ys[i]);
      context.beginPath();
      context.arc(x, y, Math.max(this.radius + 2 * ratio, 5 * ratio), 0, 2 * Math.PI);
      context.lineWidth = 2 * ratio;
      context.stroke();
    }
    if (this.keyboard) {
      const [x, y, arm] = [this.marks.width / 2, this.marks.height / 2, 7 * ratio];
      context.lineWidth = ratio;
      context.beginPath();
      context.moveTo(x - arm, y);
      context.lineTo(x + arm, y);
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
      context.stroke();
    }
    if (this.path) {
      context.beginPath();
      for (const [x, y] of this.path) context.lineTo(x, y);
      context.closePath();
      context.globalAlpha = 0.12;
      context.fill();
      context.globalAlpha = 1;
      context.lineWidth = 1.5 * ratio;
      context.setLineDash([5 * ratio, 4 * ratio]);
      context.stroke();
      context.setLineDash([]);
    }
  }

  markScale(context, style) {
    const { ratio, marks, camera } = this;
    const { pixels, label } = scaleBar(camera.scale, Math.min(160 * ratio, marks.width / 3));
    const [left, bottom] = [12 * ratio, marks.height - 12 * ratio];
    const ink = context.fillStyle;
    const wide = Math.max(pixels, context.measureText(label).width);
    context.globalAlpha = 0.85;
    context.fillStyle = this.report.theme.stage;
    context.fillRect(left - 6 * ratio, bottom - 25 * ratio, wide + 12 * ratio, 31 * ratio);
    context.globalAlpha = 1;
    context.fillStyle = ink;
    context.fillRect(left, bottom - 3 * ratio, pixels, 3 * ratio);
    context.fillText(label, left, bottom - 6 * ratio);
  }

  onWheel(event) {
    const active = document.activeElement === this.marks || event.ctrlKey || event.metaKey;
    this.hint.hidden = active;
    if (!active) {
      clearTimeout(this.hinting);
      this.hinting = setTimeout(() => (this.hint.hidden = true), 1500);
      return;
    }
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 20 : 1;
    this.zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) / 300), ...this.at(event));
  }

  onDown(event) {
    if (event.button > 0) return;
    this.marks.focus({ preventScroll: true });
    this.keyboard = false;
    this.marks.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    this.start = this.at(event);
    if (this.pointers.size > 1) this.path = null;
    else if (this.report.tool === "lasso" || event.shiftKey) this.path = [this.at(event)];
  }

  onMove(event) {
    const to = this.at(event);
    const from = this.pointers.get(event.pointerId);
    if (!from) {
      this.report.point(this.spotAt(...to), event);
      return;
    }
    this.pointers.set(event.pointerId, to);
    if (this.path) {
      const [x, y] = this.path.at(-1);
      if (Math.hypot(to[0] - x, to[1] - y) >= 3 * this.ratio) this.path.push(to);
      this.mark();
    } else if (this.pointers.size === 1) {
      // A touch that scrolls the page must not move the map too
      if (event.pointerType === "touch" && !this.moved) return;
      if (Math.hypot(to[0] - this.start[0], to[1] - this.start[1]) > 3 * this.ratio) this.dragging = true;
      if (this.dragging) {
        this.report.point(-1);
        this.shift(to[0] - from[0], to[1] - from[1]);
      }
    } else {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const distance = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      this.shift((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
      this.zoom(distance(to) / distance(from), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
    }
  }

  onUp(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const { path, dragging } = this;
    this.dragging = false;
    this.path = null;
    if (path && path.length > 2) {
      const corners = path.map(([x, y]) => this.world(x, y));
      const [px, py] = [0, 1].map((k) => Float64Array.from(corners, (corner) => corner[k]));
      const [x0, y0, x1, y1] = bounds(px, py);
      const { xs, ys } = this;
      this.report.select((i) => xs[i] >= x0 && xs[i] <= x1 && ys[i] >= y0 && ys[i] <= y1 && inPolygon(xs[i], ys[i], px, py));
    } else if (!dragging && event.type === "pointerup") {
      this.report.point(this.spotAt(...this.at(event)), event);
    }
    this.mark();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 0.1 * Math.min(this.spots.width, this.spots.height);
    const actions = {
      ArrowLeft: () => this.shift(step, 0),
      ArrowRight: () => this.shift(-step, 0),
      ArrowUp: () => this.shift(0, step),
      ArrowDown: () => this.shift(0, -step),
      "+": () => this.zoom(1.4),
      "=": () => this.zoom(1.4),
      "-": () => this.zoom(1 / 1.4),
      0: () => this.fit(),
      Escape: () => this.report.clear(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    this.keyboard = event.key !== "Escape";
    actions[event.key]();
    if (this.keyboard) {
      this.report.point(this.spotAt(this.spots.width / 2, this.spots.height / 2, Infinity), null, this);
    }
  }

  leave() {
    this.keyboard = false;
    this.mark();
  }
}

// A text that is not wider than some pixels.
function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = text.length;
  while (kept > 1 && context.measureText(text.slice(0, kept) + "…").width > width) kept--;
  return text.slice(0, kept) + "…";
}

// --------------------------------------------------------------------------------------------- the map

const THEMES = {
  light: {
    stage: "#ffffff", // as --stage of the style sheet
    quiet: "#eff1f3",
    missing: "#d9d9d9",
    gene: ["#d9dde2", "#a6cbe3", "#3f83bd", "#08306b"],
    confidence: ["#3f1052", "#8e3a7a", "#d58aa5", "#e9dfe3"],
  },
  dark: {
    stage: "#20262d",
    quiet: "#2b323a",
    missing: "#59616b",
    gene: ["#474e58", "#5f55a5", "#d4608d", "#ffd773"],
    confidence: ["#ffe6f0", "#e08bb0", "#8e4a80", "#463f4b"],
  },
};
const LEVELS = 255; // of quantized numbers; 255 itself is missing
const $ = (id) => document.getElementById(id);

class Report {
  constructor(meta, arrays, images) {
    Object.assign(this, { meta, arrays, images, n: meta.n_drawn, tool: "pan", pointed: -1, paper: false });
    Object.assign(this, { image: images.length > 0, opacity: 0.7 }); // whether the images are shown; of spots over them
    this.isolated = new Set();
    this.selected = null; // Uint8Array
    this.paint = new Int32Array(this.n);
    this.quiet = new Int32Array(this.n);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.fields = Object.fromEntries(meta.views.filter((view) => view.kind === "labels").map((view) => [view.field, view]));
    this.plots = [this.tissue()];
    if (meta.umap) this.plots.push(this.umap());
    this.buildControls();
    this.setView(0);
    this.arrange();
    window.addEventListener("resize", () => this.arrange());
    const left = () => window.scrollY !== this.scrolled && ($("tooltip").hidden = true);
    window.addEventListener("scroll", left, { passive: true });
    this.dark.addEventListener("change", () => this.setView(this.current));
    for (const [name, paper] of [["beforeprint", true], ["afterprint", false]]) {
      window.addEventListener(name, () => {
        this.paper = paper;
        for (const details of document.querySelectorAll("details")) {
          if (paper) [details.dataset.open, details.open] = [details.open, true];
          else details.open = details.dataset.open === "true";
        }
        this.recolor();
        for (const plot of this.plots) {
          plot.resize();
          plot.draw();
          if (paper) plot.expose();
        }
      });
    }
  }

  get theme() {
    return THEMES[this.dark.matches && !this.paper ? "dark" : "light"];
  }

  // Black on a dark page would be invisible; the style sheet does the same in the tables.
  visible(color) {
    return this.theme === THEMES.dark && color.toUpperCase() === "#000000" ? "#f2f2f2" : color;
  }

  tissue() {
    const { sections } = this.meta;
    const { position, section } = this.arrays;
    const [xs, ys] = [new Float32Array(this.n), new Float32Array(this.n)];
    for (let i = 0; i < this.n; i++) {
      const { step, unit, place } = sections[section[i]];
      xs[i] = unit * step * position[i] + place[0];
      ys[i] = unit * step * position[this.n + i] + place[1];
    }
    const corners = [...sections.map((one) => one.frame), ...this.images.map((one) => one.box)];
    const frame = [0, 1, 2, 3].map((k) => Math[k < 2 ? "min" : "max"](...corners.map((corner) => corner[k])));
    const labels = sections.length > 1 ? sections : [];
    document.querySelector("#tissue-plot figcaption").textContent = sections.length > 1 ? "Sections" : "Section";
    const { diameter, scaled } = this.meta;
    return new Plot($("tissue"), xs, ys, { diameter, frame, report: this, labels, images: this.images, scaled });
  }

  umap() {
    const { umap } = this.arrays;
    const xs = Float32Array.from(umap.subarray(0, this.n));
    const ys = Float32Array.from(umap.subarray(this.n), (y) => 65535 - y);
    $("umap-plot").hidden = false;
    document.querySelector(".plots").classList.add("two");
    const diameter = 65535 * Math.min(0.012, Math.max(0.002, 0.5 / Math.sqrt(this.n)));
    return new Plot($("umap"), xs, ys, { diameter, frame: bounds(xs, ys), report: this, overlapping: true });
  }

  // Give the drawings the height that their content needs, as far as the window allows.
  arrange() {
    const most = Math.max(320, 0.72 * window.innerHeight);
    const wanted = this.plots.map(({ marks, frame: [x0, y0, x1, y1] }) =>
      Math.round(Math.min(most, Math.max(280, (marks.clientWidth * (y1 - y0)) / Math.max(x1 - x0, 1e-9) + 40)))
    );
    const [left, right] = this.plots.map(({ marks }) => marks.getBoundingClientRect().top);
    const legend = document.querySelector(".legend");
    if (legend.offsetLeft < this.plots[0].marks.parentElement.offsetLeft) wanted[0] = Math.max(wanted[0], Math.min(most, legend.offsetHeight - 30));
    this.plots.forEach(({ marks }, i) => {
      marks.parentElement.style.height = `${left === right ? Math.max(...wanted) : wanted[i]}px`;
    });
    for (const plot of this.plots) plot.resize();
    // What does not scroll need not be reached with the keyboard
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  // -------------------------------------------------------------------------------------------- controls

  buildControls() {
    const select = $("view");
    const genes = document.createElement("optgroup");
    genes.label = "Genes";
    this.meta.views.forEach((view, i) => {
      const option = new Option(view.kind === "gene" && view.of ? `${view.name} (domain ${view.of})` : view.name, i);
      (view.kind === "gene" ? genes : select).append(option);
    });
    if (genes.children.length) select.append(genes);
    select.addEventListener("change", () => this.setView(Number(select.value)));

    const { sections } = this.meta;
    if (sections.length > 1) {
      $("section-label").hidden = false;
      $("section").append(new Option("all", -1), ...sections.map((one, i) => new Option(one.name, i)));
      $("section").addEventListener("change", () => {
        const i = Number($("section").value);
        this.plots[0].fit(i < 0 ? undefined : sections[i].frame);
      });
    }
    for (const tool of ["pan", "lasso"]) $(tool).addEventListener("click", () => this.setTool(tool));
    $("zoom-in").addEventListener("click", () => this.plots.forEach((plot) => plot.zoom(1.5)));
    $("zoom-out").addEventListener("click", () => this.plots.forEach((plot) => plot.zoom(1 / 1.5)));
    $("fit").addEventListener("click", () => {
      $("section").value = "-1";
      this.plots.forEach((plot) => plot.fit());
    });
    $("select-view").addEventListener("click", () => {
      const [plot] = this.plots;
      const [x0, y0] = plot.world(0, 0);
      const [x1, y1] = plot.world(plot.spots.width, plot.spots.height);
      this.select((i) => plot.xs[i] >= x0 && plot.xs[i] <= x1 && plot.ys[i] >= y0 && plot.ys[i] <= y1);
    });
    if (this.images.length) {
      $("image-tools").hidden = false;
      $("image").addEventListener("change", () => this.showImage());
      $("opacity").addEventListener("input", () => this.showImage());
    }
    $("show-all").addEventListener("click", () => this.isolate(null));
    $("clear").addEventListener("click", () => {
      this.clear();
      $("tissue").focus();
    });
    $("download").addEventListener("click", () => this.download());
  }

  setTool(tool) {
    this.tool = tool;
    for (const name of ["pan", "lasso"]) $(name).setAttribute("aria-pressed", String(name === tool));
    for (const plot of this.plots) {
      plot.marks.classList.toggle("lasso", tool === "lasso");
      plot.touch();
    }
  }

  showImage() {
    this.image = $("image").checked;
    this.opacity = Number($("opacity").value) / 100;
    $("opacity").disabled = !this.image;
    this.plots[0].still = null;
    this.plots[0].draw();
  }

  get view() {
    return this.meta.views[this.current];
  }

  setView(i) {
    if (i !== this.current) this.isolated.clear();
    this.current = i;
    const { view } = this;
    const labels = view.kind === "labels";
    $("view").value = String(i);
    $("legend-title").textContent = view.name;
    $("legend").hidden = $("legend-hint").hidden = !labels;
    $("scale").hidden = labels;
    if (labels) this.buildLegend();
    else this.buildScale();
    this.recolor();
  }

  buildLegend() {
    const { view } = this;
    const entries = view.labels.map((name, k) => [name, k, view.colors[k], view.sizes[k]]).filter((entry) => entry[3]);
    if (view.missing) entries.push(["none", missing(this.arrays[view.field]), this.theme.missing, view.missing]);
    const items = entries.map(([name, code, color, size]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.code = code;
      button.setAttribute("aria-pressed", "false");
      const disc = document.createElement("span");
      disc.className = "disc";
      disc.style.backgroundColor = this.visible(color);
      const text = document.createElement("span");
      text.textContent = name;
      const count = document.createElement("span");
      count.className = "count";
      count.textContent = size.toLocaleString("en");
      button.append(disc, text, count);
      button.addEventListener("click", (event) => this.isolate(code, event.shiftKey));
      const item = document.createElement("li");
      item.append(button);
      return item;
    });
    $("legend").replaceChildren(...items);
    this.showIsolated();
  }

  buildScale() {
    const { view } = this;
    const colors = ramp(this.theme[view.kind], $("scale-bar").width);
    const context = $("scale-bar").getContext("2d");
    colors.forEach((color, x) => {
      context.fillStyle = hexOf(color);
      context.fillRect(x, 0, 1, 10);
    });
    $("scale-low").textContent = (view.kind === "confidence" && view.low > 0 ? "≤ " : "") + Number(view.low.toPrecision(3));
    $("scale-high").textContent = (view.kind === "gene" ? "≥ " : "") + Number(view.high.toPrecision(3));
    $("scale-note").textContent =
      view.kind === "gene" ? "log(1 + counts per 10,000)" : "probability of the assigned domain";
    $("show-all").hidden = true;
  }

  // -------------------------------------------------------------------------------------------- state

  // Show only a label; with add, beside those isolated already; again, or null: all.
  isolate(code, add = false) {
    const alone = this.isolated.size === 1 && this.isolated.has(code);
    if (code === null || (alone && !add)) this.isolated.clear();
    else if (add && this.isolated.has(code)) this.isolated.delete(code);
    else if (add) this.isolated.add(code);
    else this.isolated = new Set([code]);
    this.showIsolated();
    this.recolor();
    const names = [...$("legend").querySelectorAll("[aria-pressed=true]")].map((button) => button.children[1].textContent);
    this.announce(names.length ? `${this.view.name}: only ${names.join(", ")}` : "All shown");
  }

  showIsolated() {
    for (const button of $("legend").querySelectorAll("button")) {
      const pressed = this.isolated.has(Number(button.dataset.code));
      button.setAttribute("aria-pressed", String(pressed));
      button.classList.toggle("faded", this.isolated.size > 0 && !pressed);
    }
    $("show-all").hidden = !this.isolated.size;
  }

  // Whether a spot is not faded by isolation.
  shown(i) {
    return !this.isolated.size || this.isolated.has(this.arrays[this.view.field][i]);
  }

  // Colors of the spots: those in paint above those in quiet.
  recolor() {
    const { view, theme, n, paint, quiet, selected } = this;
    let table;
    let values = this.arrays[view.field];
    if (view.kind === "labels") {
      table = view.colors.map((color) => packed(channels(this.visible(color))));
    } else {
      const [low, high] = view.kind === "confidence" ? [view.low * (LEVELS - 1), LEVELS - 1] : [0, LEVELS - 1];
      const colors = ramp(theme[view.kind], 256).map(packed);
      table = Array.from({ length: LEVELS }, (_, v) => colors[Math.round(255 * Math.min(1, Math.max(0, (v - low) / (high - low))))]);
      if (view.kind === "gene") values = values.subarray(view.row * n, (view.row + 1) * n);
    }
    const none = packed(channels(theme.missing));
    const faded = packed(channels(theme.quiet));
    for (let i = 0; i < n; i++) {
      const strong = this.shown(i) && (!selected || selected[i]);
      paint[i] = strong ? (table[values[i]] ?? none) : 0;
      quiet[i] = strong ? 0 : faded;
    }
    for (const plot of this.plots) {
      plot.still = null;
      plot.schedule();
    }
  }

  select(inside) {
    const chosen = new Uint8Array(this.n);
    let count = 0;
    for (let i = 0; i < this.n; i++) {
      if (this.shown(i) && inside(i)) {
        chosen[i] = 1;
        count++;
      }
    }
    this.selected = count ? chosen : null;
    $("selection").hidden = !count;
    if (count) {
      const { labels } = this.fields.domain;
      const sizes = new Array(labels.length).fill(0);
      chosen.forEach((one, i) => one && sizes[this.arrays.domain[i]]++);
      const parts = labels.map((name, k) => [name, sizes[k]]).filter(([, size]) => size).sort((a, b) => b[1] - a[1]);
      $("selected").textContent = `${count.toLocaleString("en")} ${count === 1 ? "spot" : "spots"} selected`;
      $("selected-parts").textContent = "· " + parts.map(([name, size]) => `domain ${name}: ${size.toLocaleString("en")}`).join(", ");
    }
    this.announce(count ? `${$("selected").textContent} ${$("selected-parts").textContent}` : "No spots there");
    this.recolor();
  }

  clear() {
    this.selected = null;
    $("selection").hidden = true;
    this.point(-1);
    this.recolor();
  }

  // ------------------------------------------------------------------------------------------- spots

  labelOf(field, i) {
    return this.fields[field]?.labels[this.arrays[field][i]] ?? "";
  }

  confidence(i) {
    const level = this.arrays.confidence[i];
    return level === LEVELS ? "" : (level / (LEVELS - 1)).toFixed(2);
  }

  // What is known of a spot: [what, value] pairs.
  facts(i) {
    const facts = [];
    if (this.meta.sections.length > 1) facts.push(["section", this.meta.sections[this.arrays.section[i]].name]);
    facts.push(["domain", this.labelOf("domain", i) || "none"]);
    const refined = this.labelOf("refined", i);
    if (refined !== this.labelOf("domain", i)) facts.push(["refined", refined || "none"]);
    if (this.fields.annotation) facts.push(["annotation", this.labelOf("annotation", i) || "none"]);
    facts.push(["confidence", this.confidence(i) || "unknown"]);
    if (this.view.kind === "gene") {
      const level = this.arrays.genes[this.view.row * this.n + i];
      facts.push([this.view.name, ((level / (LEVELS - 1)) * this.view.high).toFixed(2)]);
    }
    if (this.arrays.leading) {
      const k = this.arrays.leading.length / this.n;
      const genes = [...this.arrays.leading.subarray(k * i, k * (i + 1))].map((code) => this.meta.leading[code]).filter(Boolean);
      if (genes.length) facts.push(["top genes", genes.join(", ")]);
    }
    return facts;
  }

  // Point to a spot in all plots; the tooltip stands at the pointer, or at the center of plot.
  point(i, event = null, plot = null) {
    if (i !== this.pointed) {
      this.pointed = i;
      for (const one of this.plots) one.mark();
    }
    const tooltip = $("tooltip");
    tooltip.hidden = i < 0 || (!event && !plot);
    if (tooltip.hidden) return;
    this.scrolled = window.scrollY;
    const name = document.createElement("strong");
    name.textContent = this.arrays.names[i];
    const list = document.createElement("dl");
    for (const [what, value] of this.facts(i)) {
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, description.textContent] = [what, value];
      list.append(term, description);
    }
    tooltip.replaceChildren(name, list);
    let [x, y] = event ? [event.clientX, event.clientY] : [0, 0];
    if (plot) {
      const box = plot.marks.getBoundingClientRect();
      const [sx, sy] = plot.screen(plot.xs[i], plot.ys[i]);
      [x, y] = [box.left + sx / plot.ratio, box.top + sy / plot.ratio];
      this.announce([this.arrays.names[i], ...this.facts(i).map((fact) => fact.join(" "))].join(", "));
    }
    const box = tooltip.getBoundingClientRect();
    const page = document.documentElement;
    const left = x + 16 + box.width > page.clientWidth ? x - 16 - box.width : x + 16;
    tooltip.style.left = `${Math.min(Math.max(left, 8), Math.max(8, page.clientWidth - box.width - 8))}px`;
    tooltip.style.top = `${Math.max(8, y + 16 + box.height > page.clientHeight ? y - 16 - box.height : y + 16)}px`;
  }

  announce(text) {
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => ($("announcement").textContent = text), 150);
  }

  // Rows of the CSV file of the selected spots.
  rows() {
    const head = ["spot", "section", "x", "y", "domain", "refined_domain", "confidence"];
    if (this.fields.annotation) head.push("annotation");
    const rows = [head];
    const { position, section, names } = this.arrays;
    for (let i = 0; i < this.n; i++) {
      if (!this.selected?.[i]) continue;
      const { name, low, step } = this.meta.sections[section[i]];
      const row = [
        names[i],
        name,
        coordinate(low[0], step, position[i]),
        coordinate(low[1], step, position[this.n + i]),
        this.labelOf("domain", i),
        this.labelOf("refined", i),
        this.confidence(i),
      ];
      if (this.fields.annotation) row.push(this.labelOf("annotation", i));
      rows.push(row);
    }
    return rows;
  }

  download() {
    const url = URL.createObjectURL(new Blob([csv(this.rows())], { type: "text/csv;charset=utf-8" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = "selected_spots.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}

// Images with their places; one that cannot be read is left out.
async function load(images) {
  const loaded = images.map(async ({ src, ...place }) => {
    const image = new Image();
    image.src = src;
    await image.decode();
    return { ...place, image };
  });
  return (await Promise.allSettled(loaded)).filter((one) => one.status === "fulfilled").map((one) => one.value);
}

function offerCopy() {
  const button = $("copy");
  if (!button || !navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText($("command").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

async function start() {
  offerCopy();
  try {
    const meta = JSON.parse($("meta").textContent);
    const arrays = await decode($("arrays").textContent, meta.fields);
    const images = await load(meta.images);
    $("interactive").hidden = false;
    globalThis.report = new Report(meta, arrays, images);
  } catch (error) {
    $("interactive").hidden = true;
    $("failure").hidden = false;
    $("failure").textContent = `The map cannot be shown (${error.message}). It needs a browser from 2023 or later.`;
    throw error;
  }
}

if (typeof module !== "undefined") {
  module.exports = { split, decode, missing, channels, packed, hexOf, ramp, discs, rasterize, mixed, shuffled, Grid, bounds, inPolygon, csv, coordinate, scaleBar };
} else {
  start();
}
