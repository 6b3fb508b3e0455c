"use strict";

// A conversation about one image (stages/asking/paradigm.py): what is asked, what is answered, what the network makes of
// it. Some answers are the reader's own, the others are true.

// What a task's answers mean; `x` is what the network sees, `y` what it makes of it.
const TASKS = {
  natural: {
    truth: (rgb) => labOf(rgb).slice(1).map((value) => value / AB),
    told: (rgb) => labOf(rgb).slice(1).map((value) => value / AB),
    pixel: (x, y) => rgbOf([50 * (x[0] + 1), AB * y[0], AB * y[1]]),
    seen: (x) => rgbOf([50 * (x[0] + 1), 0, 0]),
    shown: (answer, light) => rgbOf([50 * (light + 1), AB * answer[0], AB * answer[1]]),
    covers: () => 1,
  },
  drawing: {
    truth: (rgb) => rgb.map((value) => 2 * value - 1),
    told: (rgb) => rgb.map((value) => 2 * value - 1),
    pixel: (x, y) => y.map((value) => unit((value + 1) / 2)),
    seen: (x) => [0, 1, 2].map(() => (x[0] + 1) / 2),
    shown: (answer) => answer.map((value) => unit((value + 1) / 2)),
    covers: () => 1,
  },
  inpaint: {
    truth: (rgb) => rgb.map((value) => 2 * value - 1),
    told: (rgb) => rgb.map((value) => 2 * value - 1),
    pixel: (x, y) => [0, 1, 2].map((k) => unit(((x[3] > 0 ? y[k] : x[k]) + 1) / 2)),
    seen: (x) => [0, 1, 2].map((k) => (x[k] + 1) / 2),
    shown: (answer) => answer.map((value) => unit((value + 1) / 2)),
    covers: (x) => x[3], // what is asked about outside of the hole does not count
  },
};

// A question's logits and the last question (Float32Array; undefined: none) -> in 0..1, as stages/asking/agent.py.
function questionOf(logits, last, { sharpness, level, refusal }) {
  const asked = last && standard(last);
  const push = refusal * deviation(logits);
  const z = standard(asked ? logits.map((value, at) => value - push * asked[at]) : logits);
  const top = z.reduce((most, value) => Math.max(most, value), -Infinity);
  const sum = z.reduce((total, value) => total + Math.exp(sharpness * (value - top)), 0);
  const shift = level - Math.log(sum / z.length);
  return z.map((value) => 1 / (1 + Math.exp(-sharpness * (value - top) - shift)));
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviation(values) {
  const middle = average(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / values.length + 1e-6);
}

function standard(values) {
  const [middle, scale] = [average(values), deviation(values)];
  return values.map((value) => (value - middle) / scale);
}

class Talk {
  /** `formula`: of questions; `x`: Maps, what the network sees; `rgb`: Uint8Array, three bytes a pixel. */
  constructor(network, task, hints, formula, x, rgb) {
    Object.assign(this, { network, task: TASKS[task], hints, formula, x, rgb });
    this.produced = network.outputs - 1;
    this.answered = network.inputs - x.channels - 1 - this.produced;
    this.pixels = x.height * x.width;
    this.truth = this.each(() => this.task.truth([0, 1, 2].map((k) => this.rgb[3 * this.at + k] / 255)), this.produced);
    this.seen = this.picture(() => this.task.seen(this.of(this.x)));
    this.whole = this.picture(() => [0, 1, 2].map((k) => this.rgb[3 * this.at + k] / 255));
    this.own = new Map(); // question, from 0 -> "#rrggbb"
    this.turns = []; // {y, question, picture, psnr, answer, colour}: the answer led to this turn
  }

  /** Multiplications of one turn. */
  get cost() {
    return this.network.cost(this.x.height, this.x.width);
  }

  /** The reader's answer to a question; undefined: the true one again. What stood on the one before is gone. */
  tell(number, hex) {
    if (hex === undefined) this.own.delete(number);
    else this.own.set(number, hex);
    this.turns.length = Math.min(this.turns.length, number + 1);
  }

  /** The next turn, computed in parts: yields the multiplications done. */
  *next() {
    const number = this.turns.length;
    const before = this.turns[number - 1];
    const { height, width } = this.x;
    const given = new Maps(this.network.inputs, height, width);
    given.values.set(this.x.values);
    const { weights, ...told } = before ? this.reply(before.question, number - 1) : {};
    if (before) {
      const at = this.x.channels * this.pixels;
      given.values.set(before.question, at);
      for (let k = 0; k < this.answered; k++) {
        const hint = given.plane(this.x.channels + 1 + k);
        for (let i = 0; i < this.pixels; i++) hint[i] = before.question[i] * told.answer[k];
      }
      given.values.set(before.y.values, at + (1 + this.answered) * this.pixels);
    }
    const out = yield* this.network.forward(given);
    const y = new Maps(this.produced, height, width, out.values.slice(0, this.produced * this.pixels));
    if (before) this.paint(y, before.y, weights, told.answer);
    const question = questionOf(out.plane(this.produced), before?.question, this.formula);
    const picture = this.picture(() => this.task.pixel(this.of(this.x), this.of(y)));
    this.turns.push({ y, question, picture, psnr: this.psnr(picture), ...told });
  }

  /** The answer over what was asked about, to which `y` adds what the network makes of it. */
  paint(y, before, weights, answer) {
    before.values.forEach((last, at) => {
      y.values[at] += last + weights[at % this.pixels] * (answer[Math.floor(at / this.pixels)] - last);
    });
  }

  /** What is answered to a question, and its colour for people: at the mean lightness of what was asked about. */
  reply(question, number) {
    const [x, own] = [this.x, this.own.get(number)];
    const weights = question.map((q, at) => {
      this.at = at;
      return q * this.task.covers(this.of(x));
    });
    const answer = own ? this.task.told(rgbFrom(own)) : this.truth.map((plane) => mean(plane, weights));
    return { weights, answer, colour: this.task.shown(answer, mean(x.plane(0), question)), own: Boolean(own) };
  }

  // One pixel after the other.

  of(maps) {
    return Array.from({ length: maps.channels }, (_, k) => maps.values[k * this.pixels + this.at]);
  }

  each(values, channels) {
    const planes = Array.from({ length: channels }, () => new Float32Array(this.pixels));
    for (this.at = 0; this.at < this.pixels; this.at++) values().forEach((value, k) => (planes[k][this.at] = value));
    return planes;
  }

  picture(colour) {
    const image = new ImageData(this.x.width, this.x.height);
    for (this.at = 0; this.at < this.pixels; this.at++) {
      image.data.set([...colour().map((value) => Math.round(255 * value)), 255], 4 * this.at);
    }
    return image;
  }

  /** In dB, of 8-bit pictures. */
  psnr({ data }) {
    let squares = 0;
    for (let i = 0; i < this.pixels; i++) {
      for (let k = 0; k < 3; k++) squares += (data[4 * i + k] - this.rgb[3 * i + k]) ** 2;
    }
    return 10 * Math.log10(255 ** 2 / (squares / (3 * this.pixels)));
  }
}

function mean(values, weights) {
  let [sum, total] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    sum += weights[i] * values[i];
    total += weights[i];
  }
  return total > 0 ? sum / total : 0;
}

/** Numbers in base64: little-endian float32, or its upper three bytes ("float24"). */
function numbers(text, kind) {
  const bytes = bytesOf(text);
  if (kind === "float32") return new Float32Array(bytes.buffer);
  const whole = new Uint8Array((bytes.length / 3) * 4);
  for (let from = 0, to = 0; from < bytes.length; from += 3, to += 4) {
    for (let k = 0; k < 3; k++) whole[to + 1 + k] = bytes[from + k];
  }
  return new Float32Array(whole.buffer);
}
