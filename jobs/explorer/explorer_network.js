"use strict";

// One network's card: its input and output with the filters in place, the filters enlarged, its residual.

class NetworkCard {
  constructor(explorer, network, number) {
    this.explorer = explorer;
    this.network = network;
    this.number = number; // its place in the index
    this.about = make("small");
    this.problem = make("p", { class: "problem", hidden: true });
    this.panels = this.makePanels();
    this.facts = make("div", { class: "facts" });
    const panels = make("div", { class: "panels" }, ...Object.values(this.panels).map((p) => p.element), this.facts);
    this.body = make("div", { class: "sized" }, panels);
    const heading = make("h3", {}, network.name, " ", this.about);
    this.element = make("article", { class: "network", "aria-label": network.name }, heading, this.problem, this.body);
  }

  makePanels() {
    const { explorer } = this;
    const pointed = (side) => ({
      onpoint: (y, x) => explorer.hover(this, side, y, x),
      onhold: (y, x) => explorer.hold(this, side, y, x),
      onstep: (axis, forwards, many) => explorer.step(this, side, axis, forwards, many),
    });
    const probed = (side) => ({
      onpoint: (y, x) => explorer.probeAt(side, ...this.unzoomed(side, y, x)),
      onstep: (axis, forwards) => explorer.probeStep(this, side, axis, forwards),
      onleave: () => explorer.leave(side),
    });
    const panels = {
      input: new Panel("Input", pointed("input")),
      output: new Panel("Output", pointed("output")),
      row: new Panel("Row", probed("row")),
      column: new Panel("Column", probed("column")),
      residual: new Panel("Residual", pointed("output")),
    };
    for (const [name, panel] of Object.entries(panels)) panel.element.classList.add(name);
    return panels;
  }

  /** Take the facts of another image. */
  show(facts) {
    this.shown = facts;
    this.kept = {};
    const none = "This network has no rows and columns of this image.";
    const told = facts.filters ? facts.filters.problem ?? "" : none;
    this.problem.textContent = told;
    this.problem.hidden = !told;
    this.body.hidden = Boolean(told);
    if (told) return;
    const { input, output, bounded, patch } = facts.filters;
    const size = (shape) => `${shape[2]} × ${shape[1]}`;
    const field = bounded
      ? `reads ${patch.rows[1]} × ${patch.rows[0]}, writes ${patch.columns[1]} × ${patch.columns[0]}`
      : "reads the whole input; some pixels are stored";
    this.about.textContent = `${size(input)} to ${size(output)} pixels · ${field}`;
    const keys = "Arrow keys move the pointed pixel, Shift by eight.";
    this.panels.input.label(`Input of ${this.network.name}, ${size(input)} pixels. ${keys}`);
    this.panels.output.label(`Output of ${this.network.name}, ${size(output)} pixels. ${keys}`);
    this.panels.residual.label(`Residual of ${this.network.name}, ${size(output)} pixels. ${keys}`);
    this.panels.row.label(`Row of ${this.network.name}, enlarged. Arrow keys read its weights.`);
    this.panels.column.label(`Column of ${this.network.name}, enlarged. Arrow keys read its weights.`);
  }

  get usable() {
    return Boolean(this.shown?.filters && !this.shown.filters.problem);
  }

  name(kind) {
    return `${this.shown.filters.folder}/${kind}`;
  }

  /** The chosen channel, or the last one of a network that has fewer. */
  channel(side) {
    return Math.min(this.explorer.channels[side], this.shown.filters[side][0] - 1);
  }

  /** Is what is stored for a pixel what is drawn? Of a grid, the nearest stored pixel stands for it. */
  shows(side, y, x) {
    if (!this.parts) return false;
    const { picture, row, column } = this.parts;
    const [places, drawn] = side === "input" ? [picture.columns, column.place] : [picture.rows, row.place];
    return places.nearest(drawn.channel, y, x).number === drawn.number;
  }

  /** The row and the column to show for the explorer's point; undefined while something is on its way. */
  find() {
    const { store, at } = this.explorer;
    const picture = store.need(this.name("picture"));
    if (!picture) return undefined;
    const { input, output } = this.shown.filters;
    const [p, q] = [pixelAt(at, input), pixelAt(at, output)];
    const column = picture.columns.nearest(this.channel("input"), ...p);
    const row = picture.rows.nearest(this.channel("output"), ...q);
    const filters = {
      row: this.filter(picture.rows, "rows", row, this.channel("input"), input),
      column: this.filter(picture.columns, "columns", column, this.channel("output"), output),
    };
    if (!filters.row || !filters.column) return undefined;
    return { picture, ...filters };
  }

  filter(places, kind, place, channel, shape) {
    if (!place) return undefined;
    const chunk = this.explorer.store.need(this.name(`${kind}-${places.chunk(place.number)}`));
    return chunk && new Filter(place, places.patch, places.weights(place.number, chunk), channel, shape);
  }

  /** Scripts with the patches of the pixels around, for the pointer's next moves. */
  neighbours({ picture, row, column }) {
    const around = (places, kind, { channel, y, x }) => {
      const side = Math.ceil(Math.sqrt((places.starts[1] ?? places.count) || 1));
      const found = [];
      for (const dy of [-side, 0, side]) {
        for (const dx of [-side, 0, side]) {
          const place = places.numbers.get(nameOf(channel, y + dy, x + dx));
          if (place !== undefined) found.push(this.name(`${kind}-${places.chunk(place)}`));
        }
      }
      return found;
    };
    return [...around(picture.rows, "rows", row.place), ...around(picture.columns, "columns", column.place)];
  }

  draw(parts, largest, sides, colours) {
    this.parts = parts;
    this.zoom = {};
    this.drawPicture("input", parts.row, parts.column.place, largest);
    this.drawPicture("output", parts.column, parts.row.place, largest);
    this.drawZoomed("row", parts.row, parts.column.place, sides.row, largest, colours);
    this.drawZoomed("column", parts.column, parts.row.place, sides.column, largest, colours);
    this.drawResidual(colours);
    this.read();
  }

  drawPicture(which, filter, pointed, largest) {
    const { filters } = this.shown;
    const { inPlace } = this.explorer;
    const panel = this.panels[which];
    const picture = this.once(which, this.channel(which), () => {
      return photograph(this.parts.picture[which], filters[which], filters.shown[which], this.channel(which));
    });
    put(panel.canvas, inPlace ? filterInPlace(picture, filter, largest) : picture);
    const patch = { kind: "patch", top: filter.top, left: filter.left, height: filter.height, width: filter.width };
    panel.mark(clipped(patch, filters[which]), this.marker(pointed));
    panel.canvas.dataset.filter = placeName(filter.place);
  }

  drawZoomed(which, filter, partner, side, largest, colours) {
    const view = windowAround(side, partner.y, partner.x, filter.picture);
    const panel = this.panels[which];
    paint(panel.canvas, view.height, view.width, (row, column) => {
      const [y, x] = [view.top + row, view.left + column];
      return filter.inside(y, x) ? diverging(filter.weight(y, x) / largest, colours) : NOTHING;
    });
    this.zoom[which] = view;
    const within = (frame) => ({ ...frame, top: frame.top - view.top, left: frame.left - view.left });
    const shape = [0, view.height, view.width];
    const frames = [clipped(within({ kind: "patch", ...box(filter) }), shape)];
    const { probe } = this.explorer;
    frames.push(within(this.marker(probe?.side === which ? probe : partner)));
    panel.mark(...frames.filter((frame) => overlaps(frame, shape)));
    panel.canvas.dataset.place = placeName(filter.place);
    panel.canvas.dataset.window = [view.top, view.left, view.height, view.width].join(",");
  }

  drawResidual(colours) {
    const { filters } = this.shown;
    const [, height, width] = filters.output;
    const channel = this.channel("output");
    const largest = this.explorer.residualLargest || 1;
    const panel = this.panels.residual;
    this.once("residual", `${channel} ${largest} ${colours.zero}`, () => {
      const values = this.parts.picture.residual.subarray(channel * height * width);
      paint(panel.canvas, height, width, (y, x) => diverging(values[y * width + x] / largest, colours));
    });
    panel.mark(this.marker(this.parts.row.place));
  }

  /** What `find` gave for this state, found again only when the image or the state has changed. */
  once(name, state, find) {
    if (this.kept[name]?.state !== state) this.kept[name] = { state, value: find() };
    return this.kept[name].value;
  }

  marker({ y, x }) {
    return { kind: this.explorer.held ? "pixel held" : "pixel", top: y, left: x, height: 1, width: 1 };
  }

  /** The pixel of the other picture under a pixel of the enlarged row or column. */
  unzoomed(side, y, x) {
    const view = this.zoom?.[side] ?? { top: 0, left: 0 };
    return [view.top + y, view.left + x];
  }

  read() {
    const { picture, row, column } = this.parts;
    const { input, output } = this.shown.filters;
    const [p, q] = [column.place, row.place];
    const value = (values, shape, place) => values[(place.channel * shape[1] + place.y) * shape[2] + place.x];
    this.panels.input.say(where(p), datum(value(picture.input, input, p)));
    this.panels.output.say(where(q), datum(value(picture.output, output, q)));
    this.panels.residual.say(where(q), datum(value(picture.residual, output, q)));
    this.panels.row.about.textContent = `output ${coordinates(q)} reads`;
    this.panels.column.about.textContent = `input ${coordinates(p)} writes`;
    this.readFilter("row", row, p);
    this.readFilter("column", column, q);
    this.readSum(picture, row, value(picture.output, output, q), value(picture.residual, output, q));
  }

  readFilter(which, filter, partner) {
    const { probe } = this.explorer;
    const at = probe?.side === which ? probe : partner;
    const weight = filter.inside(at.y, at.x) ? filter.weight(at.y, at.x) : undefined;
    const line = (...parts) => make("span", {}, ...parts);
    const outside = weight === undefined ? "outside" : datum(weight);
    this.panels[which].say(
      line(`${coordinates(at)}: `, outside),
      line("sum ", datum(filter.sum)),
      line("largest ", datum(filter.largest)),
    );
  }

  /** y = row . x + r, in the numbers of this pixel. */
  readSum(picture, row, output, residual) {
    const term = (value, text) => [make("dt", {}, text), make("dd", {}, datum(value))];
    this.facts.replaceChildren(
      make("p", {}, make("strong", {}, "The sum at "), `output ${coordinates(row.place)}`),
      make(
        "dl",
        {},
        ...term(row.applied(picture.input), "row times input"),
        ...term(residual, "+ residual"),
        ...term(output, "= output"),
      ),
    );
  }

  /** In one line, for a screen reader. */
  spoken() {
    const { row, column } = this.parts;
    const told = (filter) => `sum ${shown(filter.sum)}, largest ${shown(filter.largest)}`;
    const parts = [
      `${this.network.name}: row of output ${coordinates(row.place)}: ${told(row)}`,
      `column of input ${coordinates(column.place)}: ${told(column)}.`,
    ];
    return parts.join("; ");
  }
}

/** The pixel of a picture at a point given in fractions of its height and width. */
function pixelAt([down, along], [, height, width]) {
  const clamp = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value * size + 1e-9)));
  return [clamp(down, height), clamp(along, width)];
}

function box({ top, left, height, width }) {
  return { top, left, height, width };
}

function clipped(frame, [, height, width]) {
  const top = Math.max(0, frame.top);
  const left = Math.max(0, frame.left);
  const bottom = Math.min(height, frame.top + frame.height);
  const right = Math.min(width, frame.left + frame.width);
  return { ...frame, top, left, height: Math.max(0, bottom - top), width: Math.max(0, right - left) };
}

function overlaps(frame, [, height, width]) {
  return frame.top < height && frame.left < width && frame.top + frame.height > 0 && frame.left + frame.width > 0;
}

function placeName({ channel, y, x }) {
  return `${channel},${y},${x}`;
}

function coordinates({ y, x }) {
  return `(${x}, ${y})`;
}

function where(place) {
  return make("span", {}, `x ${place.x}, y ${place.y}: `);
}
