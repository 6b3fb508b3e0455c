"use strict";

// The page: images to choose from, and the conversation about one of them, in which the reader may answer otherwise.
// `raylens` is what the data scripts call; the images come last and start the page.

const SLICE = 24; // milliseconds of computing between two breaths of the page

class Steering {
  constructor(agent, images) {
    Object.assign(this, { agent, images });
    this.talks = new Map();
    this.speed = 0; // multiplications a second
    this.frames = Array.from({ length: agent.hints + 1 }, (_, number) => new Frame(this, number));
    this.seen = new Picture("what the network sees");
    this.whole = new Picture("the picture itself");
    this.all = make("button", { type: "button", onclick: () => this.tellAll() }, "All answers true again");
    this.bar = make("progress", { max: "1", "aria-label": "Computing" });
    this.status = make("span", { class: "status", role: "status" });
    const tools = make("div", { class: "tools" }, this.all, make("span", { class: "group" }, this.bar, this.status));
    const ends = [item("It sees", this.seen.element), item("The picture", this.whole.element)];
    const list = make("ol", {}, ends[0], ...this.frames.map((frame) => frame.element), ends[1]);
    const film = make("div", { class: "film" }, list);
    const { height, width } = agent;
    const shown = images.map(({ name, key, rgb }) => ({ name, key, thumbnail: { height, width, rgb } }));
    const choice = chooser(shown, (number) => this.show(number));
    this.element = make("div", { class: "steer" }, choice, tools, film);
  }

  get talk() {
    return this.talks.get(this.number);
  }

  show(number) {
    this.number = number;
    if (!this.talks.has(number)) this.talks.set(number, this.begun(this.images[number]));
    this.seen.paint(this.talk.seen);
    this.whole.paint(this.talk.whole);
    this.compute();
  }

  begun({ x, rgb }) {
    const { height, width, observed, produced, answered } = this.agent;
    this.network ??= new UNet(this.agent.unet, observed + 1 + answered + produced, produced + 1, this.agent.weights);
    const seen = new Maps(observed, height, width, numbers(x, "float32"));
    const { task, hints, question } = this.agent;
    return new Talk(this.network, task, hints, question, seen, bytesOf(rgb));
  }

  tell(number, hex) {
    this.talk.tell(number, hex);
    this.compute();
  }

  tellAll() {
    const first = Math.min(...this.talk.own.keys());
    [...this.talk.own.keys()].forEach((number) => this.talk.tell(number, undefined));
    if (Number.isFinite(first)) this.frames[first + 1].colour.focus();
    this.compute();
  }

  /** The turns that are missing, in slices; a newer call ends an older one. */
  async compute() {
    const mine = (this.computing = {});
    const { talk } = this;
    this.draw();
    const missing = this.agent.hints + 1 - talk.turns.length;
    const total = missing * talk.cost;
    let [done, busy, began] = [0, 0, performance.now()];
    let turn = talk.next();
    this.progress(done, total);
    while (talk.turns.length <= this.agent.hints) {
      const step = turn.next();
      done += step.value ?? 0;
      if (step.done) {
        turn = talk.next();
        this.draw();
      }
      if (performance.now() - began > SLICE || step.done) {
        busy += performance.now() - began;
        this.progress(done, total);
        await breath();
        if (this.computing !== mine) return;
        began = performance.now();
      }
    }
    if (done) this.speed = (1000 * done) / busy;
    this.progress(total, total);
    this.element.dispatchEvent(new CustomEvent("computed", { bubbles: true }));
  }

  progress(done, total) {
    const over = done >= total;
    this.bar.value = total ? done / total : 1;
    this.bar.hidden = over;
    this.element.setAttribute("aria-busy", String(!over));
    const { turns, own, cost } = this.talk;
    const seconds = this.speed && ` A step takes ${shownSeconds(cost / this.speed)} here.`;
    const mine = own.size ? `${own.size} of ${this.agent.hints} answers are yours.` : "All answers are true.";
    this.status.textContent = over ? `${mine}${seconds || ""}` : `Computing picture ${turns.length + 1} of ${this.agent.hints + 1}`;
    this.all.disabled = !own.size;
  }

  draw() {
    this.frames.forEach((frame) => frame.draw(this.talk.turns[frame.number], this.talk));
  }
}

/** One turn: the answer above, the picture, and what is asked next below. */
class Frame {
  constructor(page, number) {
    Object.assign(this, { page, number });
    this.picture = new Picture(number ? `the picture after answer ${number}` : "the picture without answers");
    this.asks = number < page.agent.hints ? new Picture(`what is asked as question ${number + 1}: bright where it asks`) : undefined;
    this.psnr = make("p", { class: "note" });
    const question = number - 1;
    this.colour = make("input", {
      type: "color", "aria-label": `Answer to question ${number}`, oninput: () => page.tell(question, this.colour.value),
    });
    this.true = make("button", { type: "button", title: "The true answer again", "aria-label": `True answer to question ${number} again` }, "true");
    this.true.addEventListener("click", () => {
      page.tell(question, undefined);
      this.colour.focus();
    });
    this.swatch = make("i", { class: "swatch", "aria-hidden": "true" });
    const answer = make("div", { class: "above" }, this.swatch, make("div", { class: "pick" }, this.colour, this.true));
    const asks = this.asks && make("div", { class: "below" }, this.asks.element, make("p", { class: "note" }, `question ${number + 1}`));
    this.element = item(number ? `Answer ${number}` : "No answer", this.picture.element, number ? answer : undefined, asks, this.psnr);
  }

  draw(turn, talk) {
    const own = this.number ? talk.own.get(this.number - 1) : undefined;
    this.element.classList.toggle("waiting", !turn);
    this.element.classList.toggle("own", Boolean(own));
    this.true.disabled = !own;
    if (!turn) return;
    this.picture.paint(turn.picture);
    this.psnr.textContent = Number.isFinite(turn.psnr) ? `${turn.psnr.toFixed(1)} dB` : "no error";
    if (this.asks) this.asks.paint(greys(turn.question, talk.x));
    if (!this.number) return;
    const hex = hexOf(turn.colour);
    this.swatch.style.background = hex;
    this.colour.value = own ?? hex;
    this.element.dataset.answer = turn.answer.join(" ");
  }
}

/** A canvas with its description. */
class Picture {
  constructor(label) {
    this.element = make("canvas", { role: "img", "aria-label": label, width: "1", height: "1" });
  }

  paint(image) {
    put(this.element, image);
  }
}

function item(heading, picture, above, below, note) {
  return make("li", {}, make("h4", {}, heading), above, make("div", { class: "frame" }, picture, note), below);
}

/** Up to its largest value: only the shape of a question counts. */
function greys(question, { height, width }) {
  const image = new ImageData(width, height);
  const most = question.reduce((a, b) => Math.max(a, b)) || 1;
  question.forEach((q, i) => image.data.fill(Math.round((255 * q) / most), 4 * i, 4 * i + 3).fill(255, 4 * i + 3, 4 * i + 4));
  return image;
}

function shownSeconds(seconds) {
  return seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
}

/** Time for the page to draw and to listen: a message, because timers wait longer and hidden pages draw no frames. */
function breath() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(0);
  });
}

const held = {};

/** What the data scripts call. */
function raylens(name, value) {
  if (name === "agent") {
    const all = numbers(value.numbers, value.kind);
    let at = 0;
    value.weights = new Map(value.tensors.map(([tensor, size]) => [tensor, all.subarray(at, (at += size))]));
    held.agent = value;
  } else if (held.agent) {
    held.page = new Steering(held.agent, value);
    document.getElementById("steer").replaceChildren(held.page.element);
    held.page.show(0);
  }
}
