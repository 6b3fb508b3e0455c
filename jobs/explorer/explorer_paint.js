"use strict";

// Numbers to pixels. Canvases hold one pixel for each number and are enlarged by CSS; nothing is ever read back.

// Blue below zero, red above, in two straight stretches each; zero is close to the ground of the page.
const DIVERGING = {
  light: { zero: [247, 247, 247], negative: [[67, 147, 195], [5, 48, 97]], positive: [[214, 96, 77], [103, 0, 31]] },
  dark: { zero: [28, 33, 40], negative: [[49, 120, 184], [158, 212, 255]], positive: [[196, 74, 50], [255, 201, 153]] },
};
// Over a picture: the stronger, the more opaque.
const INK = { negative: [20, 110, 255], positive: [255, 56, 30] };
const NOTHING = [0, 0, 0, 0]; // what is no number, and what lies outside: the ground shows

function scheme() {
  return DIVERGING[matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"];
}

/** The colour of a weight, `share` of the largest one: -1 .. 1. */
function diverging(share, colours) {
  if (!Number.isFinite(share)) return NOTHING;
  const [near, far] = share < 0 ? colours.negative : colours.positive;
  const along = 2 * Math.min(1, Math.abs(share));
  return along <= 1 ? mixed(colours.zero, near, along) : mixed(near, far, along - 1);
}

function mixed(from, to, share) {
  const one = (k) => Math.round(from[k] + (to[k] - from[k]) * share);
  return [one(0), one(1), one(2), 255];
}

/** Show what `colour(y, x)` gives for each pixel. */
function paint(canvas, height, width, colour) {
  const image = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) image.data.set(colour(y, x), 4 * (y * width + x));
  }
  put(canvas, image);
}

/** A picture (channels, height, width) from black to white: colours where it has three channels, else one in grey. */
function photograph(values, [channels, height, width], [black, white], channel) {
  const image = new ImageData(width, height);
  const plane = height * width;
  const planes = channels === 3 ? [0, 1, 2] : [channel, channel, channel];
  for (let i = 0; i < plane; i++) {
    for (let k = 0; k < 3; k++) {
      const share = (values[planes[k] * plane + i] - black) / (white - black);
      image.data[4 * i + k] = Math.round(255 * Math.min(1, Math.max(0, share)));
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** A copy of the picture, grey where the filter lies, with the filter's weights over it. */
function filterInPlace(picture, filter, largest) {
  const image = new ImageData(new Uint8ClampedArray(picture.data), picture.width, picture.height);
  for (let y = Math.max(0, filter.top); y < Math.min(image.height, filter.top + filter.height); y++) {
    for (let x = Math.max(0, filter.left); x < Math.min(image.width, filter.left + filter.width); x++) {
      const at = 4 * (y * image.width + x);
      image.data.set(inked(image.data, at, filter.weight(y, x) / largest), at);
    }
  }
  return image;
}

function inked(pixels, at, share) {
  const grey = 0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2];
  const ink = share < 0 ? INK.negative : INK.positive;
  const opaque = Number.isFinite(share) ? Math.sqrt(Math.min(1, Math.abs(share))) : 0;
  return mixed([grey, grey, grey], ink, opaque);
}

/** One stored row or column, one channel of it, as a function on the other picture: 0 beyond its patch. */
class Filter {
  constructor(place, [channels, height, width], weights, channel, picture) {
    Object.assign(this, { place, height, width, channel });
    this.top = place.top;
    this.left = place.left;
    this.all = weights;
    this.values = weights.subarray(channel * height * width, (channel + 1) * height * width);
    this.channels = channels;
    this.picture = picture; // channels, height, width of the other picture
  }

  weight(y, x) {
    const [row, column] = [y - this.top, x - this.left];
    if (row < 0 || row >= this.height || column < 0 || column >= this.width) return 0;
    return this.values[row * this.width + column];
  }

  inside(y, x) {
    return y >= 0 && y < this.picture[1] && x >= 0 && x < this.picture[2];
  }

  get sum() {
    return this.values.reduce((sum, value) => sum + value, 0);
  }

  /** The largest magnitude. */
  get largest() {
    return this.values.reduce((most, value) => (Math.abs(value) > most ? Math.abs(value) : most), 0);
  }

  /** The scalar product with a picture of all channels: for a row, what the output has from the input. */
  applied(values) {
    const [channels, height, width] = this.picture;
    let sum = 0;
    for (let c = 0; c < channels; c++) {
      for (let row = 0; row < this.height; row++) {
        for (let column = 0; column < this.width; column++) {
          const [y, x] = [this.top + row, this.left + column];
          if (!this.inside(y, x)) continue;
          const weight = this.all[(c * this.height + row) * this.width + column];
          sum += weight * values[(c * height + y) * width + x];
        }
      }
    }
    return sum;
  }
}

/** Part of a picture around (y, x), `side` pixels wide; the whole picture where that is no larger. */
function windowAround(side, y, x, [, height, width]) {
  if (side >= Math.max(height, width)) return { top: 0, left: 0, height, width };
  const half = side >> 1;
  return { top: y - half, left: x - half, height: side, width: side };
}

/** Four significant digits and a true minus. */
function shown(value, digits = 4) {
  if (value === undefined) return "–";
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(digits - 2) : value.toPrecision(digits);
  return text.replaceAll("-", "−");
}
