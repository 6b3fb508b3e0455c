"use strict";

// The explorer: what is pointed at, how it is shown, and all networks' cards drawn from that. `raylens` is what the
// data scripts call; the index starts the page.

class Explorer {
  constructor(index, store) {
    this.index = index;
    this.store = store;
    this.at = [0.5, 0.5]; // the point, in fractions of a picture's height and width
    this.channels = { input: 0, output: 0 };
    this.zoom = 1;
    this.inPlace = true;
    this.common = "pixel"; // whose largest weight the colours end at: "pixel" or "image"
    this.held = false; // the point stays, whatever the mouse does
    this.probe = undefined; // a weight of an enlarged filter that is read
    this.cards = index.networks.map((network, number) => new NetworkCard(this, network, number));
    this.hidden = new Set();
    this.toolbar = new Toolbar(this);
    this.legend = new Legend("Weights, the same colours for all");
    this.residualLegend = new Legend("Residual");
    this.spoken = make("p", { class: "spoken", role: "status", "aria-live": "polite" });
    this.problem = make("p", { class: "problem", hidden: true });
    const legends = make("div", { class: "legends" }, this.legend.element, this.residualLegend.element);
    const networks = make("div", { class: "networks" }, ...this.cards.map((card) => card.element));
    this.element = make("div", { class: "explorer" }, this.toolbar.element, legends, this.problem, networks, this.spoken);
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Another image. */
  show(image) {
    this.cards.forEach((card) => card.show(image.networks[card.number]));
    this.toolbar.show(this.visible);
    this.refresh();
  }

  get visible() {
    return this.cards.filter((card) => card.usable && !this.hidden.has(card));
  }

  // What the reader does.

  hover(card, side, y, x) {
    if (!this.held) this.point(card, side, y, x);
  }

  /** A click holds a pixel, another one moves it, one for which the held pixel is shown lets go. */
  hold(card, side, y, x) {
    this.held = !(this.held && card.shows(side, y, x));
    this.point(card, side, y, x);
    this.toolbar.tell();
  }

  point(card, side, y, x) {
    const [, height, width] = card.shown.filters[side];
    this.at = [(y + 0.5) / height, (x + 0.5) / width];
    this.probe = undefined;
    this.refresh();
  }

  /** An arrow key on a picture: to the next stored pixel. */
  step(card, side, axis, forwards, many) {
    if (!card?.parts) return;
    const { picture, row, column } = card.parts;
    const [places, start] = side === "input" ? [picture.columns, column.place] : [picture.rows, row.place];
    const place = { ...start };
    for (let i = 0; i < (many ? 8 : 1); i++) place[axis] = places.next(place, axis, forwards);
    this.point(card, side, place.y, place.x);
    this.say();
  }

  /** An arrow key on an enlarged filter: to the next weight. */
  probeStep(card, side, axis, forwards) {
    const filter = card.parts?.[side];
    if (!filter) return;
    const partner = side === "row" ? card.parts.column.place : card.parts.row.place;
    const start = this.probe?.side === side ? this.probe : partner;
    const next = { y: start.y, x: start.x, [axis]: start[axis] + (forwards ? 1 : -1) };
    if (!filter.inside(next.y, next.x)) return;
    this.probeAt(side, next.y, next.x);
    this.spoken.textContent = `weight at ${coordinates(next)}: ${shown(filter.weight(next.y, next.x))}`;
  }

  probeAt(side, y, x) {
    this.probe = { side, y, x };
    this.refresh();
  }

  /** A filter is no longer read. The other one may be by now: the focus goes after a tap has come. */
  leave(side) {
    if (this.probe?.side !== side) return;
    this.probe = undefined;
    this.refresh();
  }

  key(event) {
    if (event.key === "Escape" && this.held) {
      this.held = false;
      this.toolbar.tell();
      this.refresh();
    } else if (!event.ctrlKey && !event.metaKey && ["+", "=", "-"].includes(event.key)) {
      event.preventDefault();
      this.enlarge(event.key !== "-");
    }
  }

  enlarge(more) {
    this.zoom = Math.min(8, Math.max(1, more ? this.zoom * 2 : this.zoom / 2));
    this.toolbar.tell();
    this.refresh();
  }

  set(name, value) {
    this[name] = value;
    this.refresh();
  }

  // What is drawn.

  /** Draw with the next frame; many calls make one drawing. */
  refresh() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.draw();
    });
  }

  draw() {
    const cards = this.visible;
    this.complain();
    this.cards.forEach((card) => (card.element.hidden = this.hidden.has(card)));
    this.store.begin(this);
    const parts = cards.map((card) => card.find());
    const complete = parts.length > 0 && parts.every(Boolean);
    this.element.classList.toggle("waiting", !complete);
    if (!complete) return; // the scripts that arrive ask for another drawing
    const colours = scheme();
    const largest = this.largest(cards, parts);
    this.residualLargest = Math.max(...cards.map((card) => card.shown.filters.residual));
    cards.forEach((card, i) => card.draw(parts[i], largest, this.sides(parts), colours));
    this.legend.draw(largest, colours);
    this.residualLegend.draw(this.residualLargest || 1, colours);
    this.element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
    this.store.wish(cards.flatMap((card, i) => card.neighbours(parts[i])));
    if (this.saying) this.spoken.textContent = cards.map((card) => card.spoken()).join(" ");
    this.saying = false;
  }

  /** Where the colours end: the largest weight of all that is shown, or of the whole image. */
  largest(cards, parts) {
    const all = this.common === "image"
      ? cards.map((card) => card.shown.filters.peak)
      : parts.flatMap(({ row, column }) => [row.largest, column.largest]);
    return Math.max(...all) || 1;
  }

  /** How many pixels wide the enlarged filters are: the same for all networks, so that they compare. */
  sides(parts) {
    const side = (kind) => {
      const most = Math.max(...parts.map((part) => Math.max(part[kind].height, part[kind].width)));
      return Math.max(3, Math.ceil((most + 2) / this.zoom) | 1);
    };
    return { row: side("row"), column: side("column") };
  }

  complain() {
    const missing = [...this.store.missing];
    this.problem.hidden = !missing.length;
    this.problem.textContent = missing.length
      ? `${missing.length} of the page's files cannot be read (data/${missing[0]}.js): keep the folder together, or write it again with raylens report.`
      : "";
  }

  /** Tell screen readers what the next drawing shows: only for keys, a moving mouse would never stop talking. */
  say() {
    this.saying = true;
  }
}

const store = new Store();

/** What every data script calls. */
function raylens(name, value) {
  if (name === "index") start(value);
  else store.take(name, value);
}

function start(index) {
  const places = { explorer: document.getElementById("filters-explorer"), strip: document.getElementById("svd-strip") };
  const views = [];
  if (places.explorer) views.push([places.explorer, new Explorer(index, store)]);
  if (places.strip) views.push([places.strip, new Strip(index, store)]);
  const show = (number) => views.forEach(([, view]) => view.show(index.images[number]));
  const refresh = () => views.forEach(([, view]) => view.refresh());
  views.forEach(([place, view]) => place.replaceChildren(view.element));
  if (views.length) views[0][0].prepend(chooser(index.images, show));
  store.onarrival = refresh;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  show(0);
}
