"use strict";

// The leading singular vectors of each network: what F passes on most strongly, and what becomes of it.

const SIDES = ["input", "output"];

function sigmaName(number) {
  return `σ${String(number + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit])}`;
}

class Strip {
  constructor(index, store) {
    this.index = index;
    this.store = store;
    this.chosen = 0;
    this.rows = [];
    this.element = make("div", { class: "strip networks" });
  }

  show(image) {
    const rows = image.networks.map((facts, i) => this.row(facts, this.index.networks[i])).filter(Boolean);
    this.rows = rows.filter((row) => row instanceof StripRow);
    const none = make("p", { class: "problem" }, "This image has no singular vectors.");
    this.element.replaceChildren(...(rows.length ? rows.map((row) => row.element) : [none]));
    this.refresh();
  }

  row(facts, network) {
    if (!facts.svd) return undefined;
    if (!facts.svd.problem) return new StripRow(this, facts.svd, network);
    return { element: make("p", { class: "problem" }, `${network.name}: ${facts.svd.problem}`) };
  }

  choose(number) {
    this.chosen = number;
    this.refresh();
  }

  refresh() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.store.begin(this);
      this.rows.forEach((row) => row.draw(scheme()));
    });
  }
}

class StripRow {
  constructor(strip, facts, network) {
    this.strip = strip;
    this.facts = facts;
    this.network = network;
    this.items = facts.sigma.map((sigma, i) => this.item(sigma, i));
    this.large = { input: this.panel("input", "Eigen-input"), output: this.panel("output", "Eigen-output") };
    const label = `Singular vectors of ${network.name}`;
    const list = make("div", { class: "pairs", role: "group", "aria-label": label }, ...this.items.map((i) => i.element));
    const chosen = make("div", { class: "chosen" }, ...SIDES.map((side) => this.large[side].element));
    this.element = make("article", { class: "network" }, make("h3", {}, network.name, " ", this.told()), list, chosen);
  }

  told() {
    const { sigma, certificate, converged, passes } = this.facts;
    const how = `${converged ? "converged" : "not converged"} after ${passes} probes`;
    const worst = datum(Math.max(...certificate), 3);
    return make("small", {}, `${sigma.length} pairs, ${how}; |Fᵀu − σv| is at most `, worst, " σ₁");
  }

  item(sigma, number) {
    const canvases = { input: make("canvas", { "aria-hidden": "true" }), output: make("canvas", { "aria-hidden": "true" }) };
    const bar = make("i", { class: "bar" });
    bar.style.width = `${(100 * sigma) / (this.facts.sigma[0] || 1)}%`;
    const name = make("span", {}, sigmaName(number), " ", datum(sigma));
    const parts = [name, make("span", { class: "track" }, bar), canvases.input, canvases.output];
    const element = make("button", { type: "button", onclick: () => this.strip.choose(number) }, ...parts);
    return { element, canvases };
  }

  panel(side, title) {
    const panel = new Panel(title, {
      onpoint: (y, x) => this.probe({ side, y, x }),
      onleave: () => this.probed?.side === side && this.probe(undefined),
      onstep: (axis, forwards) => this.step(side, axis, forwards),
    });
    const [, height, width] = this.facts[side];
    panel.label(`${title} of ${this.network.name}, ${width} × ${height} pixels. Arrow keys read its values.`);
    return panel;
  }

  probe(probed) {
    this.probed = probed;
    this.strip.refresh();
  }

  step(side, axis, forwards) {
    const [, height, width] = this.facts[side];
    const start = this.probed?.side === side ? this.probed : { y: height >> 1, x: width >> 1 };
    const next = { side, y: start.y, x: start.x, [axis]: start[axis] + (forwards ? 1 : -1) };
    if (next.y >= 0 && next.y < height && next.x >= 0 && next.x < width) this.probe(next);
  }

  draw(colours) {
    this.items.forEach((item, number) => {
      const chosen = number === this.strip.chosen;
      item.element.setAttribute("aria-pressed", String(chosen));
      if (!chosen && item.painted === colours) return;
      const pair = this.strip.store.need(`${this.facts.folder}/pair-${number}`);
      if (!pair) return;
      if (item.painted !== colours) SIDES.forEach((side) => this.paint(item.canvases[side], side, pair[side], colours));
      item.painted = colours;
      if (chosen) SIDES.forEach((side) => this.drawLarge(side, pair[side], number, colours));
    });
  }

  drawLarge(side, vector, number, colours) {
    const panel = this.large[side];
    const largest = this.paint(panel.canvas, side, vector, colours);
    panel.canvas.dataset.pair = String(number);
    panel.about.textContent = `of ${sigmaName(number)}, of length 1`;
    const at = this.probed?.side === side ? this.probed : undefined;
    panel.mark(...(at ? [{ kind: "pixel", top: at.y, left: at.x, height: 1, width: 1 }] : []));
    if (at) panel.say(where(at), ...this.values(side, vector, at));
    else panel.say("colours end at ", datum(largest));
  }

  values(side, vector, { y, x }) {
    const [channels, height, width] = this.facts[side];
    const one = (c) => datum(vector[(c * height + y) * width + x]);
    return Array.from({ length: channels }, (_, c) => [c ? ", " : "", one(c)]).flat();
  }

  /**
   * A vector up to its own largest value, which is returned. One channel in the colours of the filters; three as
   * colours around grey; of any other number the first.
   */
  paint(canvas, side, vector, colours) {
    const [channels, height, width] = this.facts[side];
    const plane = height * width;
    const values = channels === 3 ? vector : vector.subarray(0, plane);
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value) || 0), 0);
    const share = (c, y, x) => values[c * plane + y * width + x] / (largest || 1);
    const grey = (value) => Math.round(127.5 + 127.5 * value);
    paint(canvas, height, width, (y, x) =>
      channels === 3 ? [...[0, 1, 2].map((c) => grey(share(c, y, x))), 255] : diverging(share(0, y, x), colours),
    );
    return largest;
  }
}
