"use strict";

// The agent's U-Net (stages/asking/unet.py) on plain arrays. Functions with a star yield the multiplications they have
// done since, so that whoever drives them can let the page answer its reader in between.

const EPS = 1e-5;

/** channels x height x width numbers. */
class Maps {
  constructor(channels, height, width, values = new Float32Array(channels * height * width)) {
    Object.assign(this, { channels, height, width, values });
  }

  plane(channel) {
    const size = this.height * this.width;
    return this.values.subarray(channel * size, (channel + 1) * size);
  }
}

class UNet {
  /** `weights`: name -> Float32Array, as the network's state dict has them. */
  constructor({ width, depth, most }, inputs, outputs, weights) {
    this.widths = Array.from({ length: depth }, (_, level) => Math.min(width * 2 ** level, most));
    Object.assign(this, { depth, inputs, outputs, weights });
  }

  /** Multiplications of one pass. */
  cost(height, width) {
    const whole = this.padded(height, width);
    const pixels = (level) => (whole.height * whole.width) / 4 ** level;
    const w = this.widths;
    const block = (from, level) => 9 * pixels(level) * w[level] * (from + w[level]);
    const down = w.reduce((sum, _, level) => sum + block(level ? w[level - 1] : this.inputs, level), 0);
    const up = w.slice(1).reduce((sum, below, level) => sum + block(below + w[level], level), 0);
    return down + up + pixels(0) * w[0] * this.outputs;
  }

  padded(height, width) {
    const multiple = 2 ** (this.depth - 1);
    return { height: Math.ceil(height / multiple) * multiple, width: Math.ceil(width / multiple) * multiple };
  }

  *forward(given) {
    const whole = this.padded(given.height, given.width);
    const kept = [];
    let maps = cut(given, whole.height, whole.width);
    for (let level = 0; level < this.depth; level++) {
      maps = yield* this.block(`down.${level}`, [level ? halved(maps) : maps], this.widths[level]);
      kept.push(maps);
    }
    for (let level = this.depth - 2; level >= 0; level--) {
      maps = yield* this.block(`up.${level}`, [doubled(maps), kept[level]], this.widths[level]);
    }
    return cut(this.head(maps), given.height, given.width);
  }

  *block(name, parts, outputs) {
    const one = yield* convolved(parts, this.weights.get(`body.${name}.0.weight`), outputs);
    this.norm(`body.${name}.1`, one);
    const two = yield* convolved([one], this.weights.get(`body.${name}.3.weight`), outputs);
    this.norm(`body.${name}.4`, two);
    return two;
  }

  /** Group norm and ReLU, in place. */
  norm(name, maps) {
    const [scale, shift] = [this.weights.get(`${name}.weight`), this.weights.get(`${name}.bias`)];
    const each = maps.channels / groupsOf(maps.channels);
    const size = maps.height * maps.width;
    for (let first = 0; first < maps.channels; first += each) {
      const values = maps.values.subarray(first * size, (first + each) * size);
      let [sum, squares] = [0, 0];
      for (let i = 0; i < values.length; i++) sum += values[i];
      const mean = sum / values.length;
      for (let i = 0; i < values.length; i++) squares += (values[i] - mean) ** 2;
      const over = 1 / Math.sqrt(squares / values.length + EPS);
      for (let c = 0; c < each; c++) {
        const slope = scale[first + c] * over;
        const offset = shift[first + c] - mean * slope;
        for (let i = c * size; i < (c + 1) * size; i++) values[i] = Math.max(0, values[i] * slope + offset);
      }
    }
  }

  /** A 1 x 1 convolution with a bias. */
  head(maps) {
    const [weight, bias] = [this.weights.get("body.head.weight"), this.weights.get("body.head.bias")];
    const found = new Maps(this.outputs, maps.height, maps.width);
    for (let o = 0; o < this.outputs; o++) {
      const plane = found.plane(o).fill(bias[o]);
      for (let c = 0; c < maps.channels; c++) {
        const [from, w] = [maps.plane(c), weight[o * maps.channels + c]];
        for (let i = 0; i < plane.length; i++) plane[i] += w * from[i];
      }
    }
    return found;
  }
}

/** As stages.asking.unet groups them: 8 groups, of at least 4 channels. */
function groupsOf(channels) {
  const greatest = (a, b) => (b ? greatest(b, a % b) : a);
  return greatest(channels, greatest(8, Math.max(1, Math.floor(channels / 4))));
}

/** 3 x 3, with zeros around, of these maps one after the other. */
function* convolved(parts, weights, outputs) {
  const { height, width } = parts[0];
  const inputs = parts.reduce((sum, part) => sum + part.channels, 0);
  const framed = frame(parts, inputs);
  const found = new Maps(outputs, height, width);
  const plane = (height + 2) * (width + 2);
  const step = 9 * inputs;
  for (let o = 0; o < outputs; ) {
    const [add, many] = outputs - o >= 4 ? [addFour, 4] : [addOne, 1];
    for (let c = 0; c < inputs; c++) add(found.values, o, height, width, framed, c * plane, weights, o * step + 9 * c, step);
    o += many;
    yield many * step * height * width;
  }
  return found;
}

/** All planes with a border of zeros. */
function frame(parts, inputs) {
  const { height, width } = parts[0];
  const found = new Float32Array(inputs * (height + 2) * (width + 2));
  let row = 0;
  for (const { channels, values } of parts) {
    for (let c = 0; c < channels; c++, row += 2) {
      for (let y = 0; y < height; y++, row++) {
        const from = (c * height + y) * width;
        found.set(values.subarray(from, from + width), (row + 1) * (width + 2) + 1);
      }
    }
  }
  return found;
}

/** Adds what one input plane gives to four output planes: nine numbers are read once for 36 multiplications. */
function addFour(out, number, height, width, input, from, w, k, step) {
  const [stride, plane] = [width + 2, height * width];
  const [l, m, n] = [k + step, k + 2 * step, k + 3 * step];
  const a0 = w[k], a1 = w[k + 1], a2 = w[k + 2], a3 = w[k + 3], a4 = w[k + 4], a5 = w[k + 5], a6 = w[k + 6], a7 = w[k + 7], a8 = w[k + 8];
  const b0 = w[l], b1 = w[l + 1], b2 = w[l + 2], b3 = w[l + 3], b4 = w[l + 4], b5 = w[l + 5], b6 = w[l + 6], b7 = w[l + 7], b8 = w[l + 8];
  const c0 = w[m], c1 = w[m + 1], c2 = w[m + 2], c3 = w[m + 3], c4 = w[m + 4], c5 = w[m + 5], c6 = w[m + 6], c7 = w[m + 7], c8 = w[m + 8];
  const d0 = w[n], d1 = w[n + 1], d2 = w[n + 2], d3 = w[n + 3], d4 = w[n + 4], d5 = w[n + 5], d6 = w[n + 6], d7 = w[n + 7], d8 = w[n + 8];
  for (let y = 0; y < height; y++) {
    let top = from + y * stride;
    let [middle, bottom, o] = [top + stride, top + 2 * stride, number * plane + y * width];
    let p0 = input[top], p1 = input[top + 1], p3 = input[middle], p4 = input[middle + 1], p6 = input[bottom], p7 = input[bottom + 1];
    for (let x = 0; x < width; x++, o++) {
      const p2 = input[top + x + 2], p5 = input[middle + x + 2], p8 = input[bottom + x + 2];
      out[o] += a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3 + a4 * p4 + a5 * p5 + a6 * p6 + a7 * p7 + a8 * p8;
      out[o + plane] += b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3 + b4 * p4 + b5 * p5 + b6 * p6 + b7 * p7 + b8 * p8;
      out[o + 2 * plane] += c0 * p0 + c1 * p1 + c2 * p2 + c3 * p3 + c4 * p4 + c5 * p5 + c6 * p6 + c7 * p7 + c8 * p8;
      out[o + 3 * plane] += d0 * p0 + d1 * p1 + d2 * p2 + d3 * p3 + d4 * p4 + d5 * p5 + d6 * p6 + d7 * p7 + d8 * p8;
      p0 = p1; p1 = p2; p3 = p4; p4 = p5; p6 = p7; p7 = p8;
    }
  }
}

function addOne(out, number, height, width, input, from, w, k) {
  const stride = width + 2;
  for (let y = 0, o = number * height * width; y < height; y++) {
    for (let x = 0; x < width; x++, o++) {
      let [sum, at] = [0, from + y * stride + x];
      for (let j = 0; j < 9; j += 3, at += stride) {
        sum += w[k + j] * input[at] + w[k + j + 1] * input[at + 1] + w[k + j + 2] * input[at + 2];
      }
      out[o] += sum;
    }
  }
}

/** The largest of each 2 x 2. */
function halved(maps) {
  const found = new Maps(maps.channels, maps.height / 2, maps.width / 2);
  const { values, width } = maps;
  for (let row = 0, at = 0; row < found.channels * found.height; row++) {
    for (let x = 0, i = 2 * row * width; x < found.width; x++, i += 2) {
      found.values[at++] = Math.max(values[i], values[i + 1], values[i + width], values[i + width + 1]);
    }
  }
  return found;
}

/** Each number four times. */
function doubled(maps) {
  const found = new Maps(maps.channels, 2 * maps.height, 2 * maps.width);
  for (let row = 0, at = 0; row < found.channels * found.height; row++) {
    for (let x = 0; x < found.width; x++) found.values[at++] = maps.values[(row >> 1) * maps.width + (x >> 1)];
  }
  return found;
}

/** The upper left of the maps; where that is larger than they are, they go on as they end. */
function cut(maps, height, width) {
  if (maps.height === height && maps.width === width) return maps;
  const found = new Maps(maps.channels, height, width);
  for (let c = 0, at = 0; c < maps.channels; c++) {
    for (let y = 0; y < height; y++) {
      const row = (c * maps.height + Math.min(y, maps.height - 1)) * maps.width;
      for (let x = 0; x < width; x++) found.values[at++] = maps.values[row + Math.min(x, maps.width - 1)];
    }
  }
  return found;
}
