"use strict";

// The numbers of the page. A page opened from disk may not fetch, so they lie beside it as scripts, each of which hands
// one value to raylens(name, value): base64 of little-endian float32 (places: int16), bit for bit as they were stored.

class Store {
  /**
   * Keeps `limit` bytes of what was asked for last, more only where the drawings need more; what is wished for comes
   * `parallel` scripts at a time.
   */
  constructor({ folder = "data/", limit = 128e6, parallel = 4 } = {}) {
    this.folder = folder;
    this.limit = limit;
    this.parallel = parallel;
    this.held = new Map(); // name -> {value, bytes}, the least recently asked for first
    this.bytes = 0;
    this.loading = new Set();
    this.missing = new Set();
    this.wishes = [];
    this.wished = "";
    this.pins = new Map(); // view -> the names that its drawing needs
    this.pinned = new Set(); // those of the drawing at hand
    this.onarrival = () => {};
  }

  /** A view begins a drawing: what it needs from here on stays, whatever arrives, until it begins another. */
  begin(view) {
    this.pinned = new Set();
    this.pins.set(view, this.pinned);
  }

  /** The value, or undefined while it is on its way (or missing): onarrival tells of every change. */
  need(name) {
    this.pinned.add(name);
    const found = this.held.get(name);
    if (found === undefined) {
      this.load(name);
      return undefined;
    }
    this.held.delete(name);
    this.held.set(name, found);
    return found.value;
  }

  /**
   * Fetch these when nothing else is to do. Replaces what was wished for before: the pointer has moved on. The same
   * wish again is none: what there is no room for would come and go for ever.
   */
  wish(names) {
    const wished = [...new Set(names)];
    if (wished.join() !== this.wished) this.wishes = wished.filter((name) => !this.held.has(name));
    this.wished = wished.join();
    this.fulfil();
  }

  fulfil() {
    while (this.loading.size < this.parallel && this.wishes.length) this.load(this.wishes.shift());
  }

  load(name) {
    if (this.held.has(name) || this.loading.has(name) || this.missing.has(name)) return;
    this.loading.add(name);
    const script = document.createElement("script");
    script.src = `${this.folder}${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      this.loading.delete(name);
      this.missing.add(name);
      this.onarrival(name);
    };
    document.head.append(script);
  }

  /** What a script calls. */
  take(name, value) {
    const found = decoded(value);
    this.loading.delete(name);
    if (!this.held.has(name)) {
      this.held.set(name, found);
      this.bytes += found.bytes;
    }
    const pins = [...this.pins.values()];
    for (const [oldest, { bytes }] of this.held) {
      if (this.bytes <= this.limit) break;
      if (pins.some((pinned) => pinned.has(oldest))) continue;
      this.held.delete(oldest);
      this.bytes -= bytes;
    }
    this.onarrival(name);
    this.fulfil();
  }
}

/** A script's value with its numbers as typed arrays, and their bytes. */
function decoded(value) {
  if (typeof value === "string") {
    const numbers = new Float32Array(bytesOf(value).buffer);
    return { value: numbers, bytes: numbers.byteLength };
  }
  const found = {};
  let bytes = 0;
  for (const [name, part] of Object.entries(value)) {
    found[name] = typeof part === "string" ? new Float32Array(bytesOf(part).buffer) : new Places(part);
    bytes += found[name].byteLength;
  }
  return { value: found, bytes };
}

function nameOf(channel, y, x) {
  return (channel * 32768 + y) * 32768 + x;
}

/** The pixels whose row (or column) is stored, in the order of the chunks, and where in the chunks each lies. */
class Places {
  constructor({ places, starts, patch }) {
    this.table = new Int16Array(bytesOf(places).buffer); // channel, y, x of the pixel; top, left of its patch
    this.starts = starts; // the first place of each chunk
    this.patch = patch; // channels, height, width
    this.numbers = new Map();
    for (let i = 0; i < this.count; i++) this.numbers.set(nameOf(...this.pixel(i)), i);
    this.byteLength = 8 * this.table.byteLength; // with the numbers
  }

  get count() {
    return this.table.length / 5;
  }

  /** channel, y, x of place i */
  pixel(i) {
    return [this.table[5 * i], this.table[5 * i + 1], this.table[5 * i + 2]];
  }

  at(i) {
    const [channel, y, x] = this.pixel(i);
    return { number: i, channel, y, x, top: this.table[5 * i + 3], left: this.table[5 * i + 4] };
  }

  /** The place at this pixel, else the nearest one, of the same channel if there is one; undefined if none is stored. */
  nearest(channel, y, x) {
    const exact = this.numbers.get(nameOf(channel, y, x));
    if (exact !== undefined) return this.at(exact);
    let best = -1;
    let least = Infinity;
    for (let i = 0; i < this.count; i++) {
      const [c, row, column] = this.pixel(i);
      const distance = (row - y) ** 2 + (column - x) ** 2 + (c === channel ? 0 : 1e10);
      if (distance < least) [best, least] = [i, distance];
    }
    return best < 0 ? undefined : this.at(best);
  }

  /** The next stored coordinate from `place` on, along "y" or "x"; the same where there is none. */
  next(place, axis, forwards) {
    const offset = axis === "y" ? 1 : 2;
    let best = forwards ? Infinity : -Infinity;
    for (let i = 0; i < this.count; i++) {
      const value = this.table[5 * i + offset];
      if (forwards ? value > place[axis] && value < best : value < place[axis] && value > best) best = value;
    }
    return Number.isFinite(best) ? best : place[axis];
  }

  /** The chunk that holds place i. */
  chunk(i) {
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= i) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** The weights of place i (channels, height, width), a view of its chunk. */
  weights(i, chunk) {
    const size = this.patch[0] * this.patch[1] * this.patch[2];
    const from = (i - this.starts[this.chunk(i)]) * size;
    return chunk.subarray(from, from + size);
  }
}
