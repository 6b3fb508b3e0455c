"use strict";

// One picture that can be pointed at: with the mouse, by a tap, or with the arrow keys.

const STEPS = { ArrowUp: ["y", false], ArrowDown: ["y", true], ArrowLeft: ["x", false], ArrowRight: ["x", true] };

/** A number as a reader wants it, with the stored one behind it. */
function datum(value, digits) {
  return make("data", { value: String(value) }, shown(value, digits));
}

class Panel {
  /**
   * `onpoint(y, x, event)`: the pixel under the mouse, or tapped. `onstep(axis, forwards, many)`: an arrow key.
   * `onleave()`: the mouse has left, or the focus. A finger that is lifted has not left: a tap is there to read by.
   */
  constructor(title, { onpoint, onstep, onleave, onhold } = {}) {
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.marks = make("div", { class: "marks", "aria-hidden": "true" });
    this.stage = make("div", { class: "stage", tabindex: "0", role: "application" }, this.canvas, this.marks);
    this.readout = make("p", { class: "readout" });
    this.about = make("small");
    this.element = make(
      "figure",
      { class: "panel" },
      make("figcaption", {}, make("strong", {}, title), this.about),
      this.stage,
      this.readout,
    );
    this.listen({ onpoint, onstep, onleave, onhold });
  }

  listen({ onpoint, onstep, onleave, onhold }) {
    const point = (event) => onpoint?.(...this.pixel(event), event);
    this.stage.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" || event.buttons) point(event);
    });
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse") point(event);
    });
    this.stage.addEventListener("click", (event) => {
      if (event.pointerType === "mouse") onhold?.(...this.pixel(event));
    });
    this.stage.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") onleave?.();
    });
    this.stage.addEventListener("blur", () => onleave?.());
    this.stage.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      onstep?.(...step, event.shiftKey);
    });
  }

  /** y, x of the pixel under the pointer. */
  pixel(event) {
    const box = this.canvas.getBoundingClientRect();
    const along = (at, start, size, count) => {
      return Math.min(count - 1, Math.max(0, Math.floor(((at - start) / size) * count)));
    };
    return [
      along(event.clientY, box.top, box.height, this.canvas.height),
      along(event.clientX, box.left, box.width, this.canvas.width),
    ];
  }

  /** What the picture is, for those who do not see it. */
  label(text) {
    this.stage.setAttribute("aria-label", text);
  }

  /** Frames over the picture: {kind, top, left, height, width} in its pixels. */
  mark(...frames) {
    const [height, width] = [this.canvas.height, this.canvas.width];
    const percent = (value, of) => `${(100 * value) / of}%`;
    this.marks.replaceChildren(
      ...frames.map((frame) => {
        const element = make("i", { class: frame.kind });
        element.style.top = percent(frame.top, height);
        element.style.left = percent(frame.left, width);
        element.style.height = percent(frame.height, height);
        element.style.width = percent(frame.width, width);
        return element;
      }),
    );
  }

  say(...parts) {
    this.readout.replaceChildren(...parts);
  }
}

/** The colours from -largest to largest, with numbers. */
class Legend {
  constructor(title) {
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.ticks = make("div", { class: "ticks" });
    this.element = make("div", { class: "legend" }, make("span", {}, title), this.canvas, this.ticks);
  }

  draw(largest, colours) {
    const wide = 257;
    paint(this.canvas, 1, wide, (_, x) => diverging((2 * x) / (wide - 1) - 1, colours));
    const values = [-1, -0.5, 0, 0.5, 1].map((share) => share * largest);
    this.ticks.replaceChildren(...values.map((value) => make("span", {}, datum(value, 3))));
    this.element.dataset.largest = String(largest);
  }
}
