"use strict";

// What the reader chooses beside the pixel: the image, networks, channels, zoom, colours.

const COLOUR_NAMES = ["red", "green", "blue"];

class Toolbar {
  constructor(explorer) {
    this.explorer = explorer;
    this.zoom = make("output", {}, "1×");
    this.channels = make("span", { class: "group" });
    this.hint = make("p", { class: "hint" });
    const tools = make("div", { class: "tools" }, this.networks(), this.channels, this.zooming(), this.colours(), this.pad());
    this.element = make("div", { class: "toolbar" }, tools, this.hint);
    this.tell();
  }

  networks() {
    const { explorer } = this;
    const one = (card) => {
      const toggle = (event) => {
        if (event.target.checked) explorer.hidden.delete(card);
        else explorer.hidden.add(card);
        explorer.refresh();
      };
      return make("label", {}, make("input", { type: "checkbox", checked: true, onchange: toggle }), card.network.name);
    };
    const all = explorer.cards.length > 1 ? explorer.cards.map(one) : [];
    return make("span", { class: "group", role: "group", "aria-label": "Networks shown", hidden: !all.length }, ...all);
  }

  zooming() {
    const button = (text, label, more) => {
      return make("button", { type: "button", "aria-label": label, onclick: () => this.explorer.enlarge(more) }, text);
    };
    const parts = [button("−", "Show more around", false), this.zoom, button("+", "Enlarge", true)];
    return make("span", { class: "group" }, make("span", {}, "Zoom"), ...parts);
  }

  colours() {
    const { explorer } = this;
    const options = [make("option", { value: "pixel" }, "this pixel"), make("option", { value: "image" }, "the whole image")];
    const onchange = (event) => explorer.set("common", event.target.value);
    const choice = make("select", { onchange }, ...options);
    const inPlace = (event) => explorer.set("inPlace", event.target.checked);
    return make(
      "span",
      { class: "group" },
      make("label", {}, "Colours up to the largest of ", choice),
      make("label", {}, make("input", { type: "checkbox", checked: true, onchange: inPlace }), "filters in place"),
    );
  }

  /** Arrow keys for those who have none. */
  pad() {
    const arrow = (text, label, key) => {
      const onclick = () => this.explorer.step(this.explorer.visible[0], "input", ...STEPS[key], false);
      return make("button", { type: "button", "aria-label": label, onclick }, text);
    };
    return make(
      "span",
      { class: "group pad" },
      arrow("←", "One pixel to the left", "ArrowLeft"),
      arrow("↑", "One pixel up", "ArrowUp"),
      arrow("↓", "One pixel down", "ArrowDown"),
      arrow("→", "One pixel to the right", "ArrowRight"),
    );
  }

  /** Channels of another image's networks; a choice only where there are several. */
  show(cards) {
    const most = (side) => Math.max(0, ...cards.map((card) => card.shown.filters[side][0]));
    const choices = ["input", "output"].filter((side) => most(side) > 1).map((side) => this.channel(side, most(side)));
    this.channels.replaceChildren(...choices);
    this.channels.hidden = !choices.length;
  }

  channel(side, count) {
    const { channels } = this.explorer;
    channels[side] = Math.min(channels[side], count - 1);
    const name = (k) => (count === 3 ? COLOUR_NAMES[k] : String(k));
    const option = (k) => make("option", { value: String(k), selected: k === channels[side] }, name(k));
    const onchange = (event) => this.explorer.set("channels", { ...this.explorer.channels, [side]: Number(event.target.value) });
    const options = Array.from({ length: count }, (_, k) => option(k));
    return make("label", {}, `${side === "input" ? "Input" : "Output"} channel `, make("select", { onchange }, ...options));
  }

  tell() {
    const { zoom, held } = this.explorer;
    this.zoom.textContent = `${zoom}×`;
    this.hint.textContent = held
      ? "Held: click another pixel to move, the same one or Esc to let go. Point at a row or column to read its weights."
      : "Point at a pixel, tap it, or use the arrow keys; a click holds it, + and − zoom.";
    this.hint.classList.toggle("held", held);
  }
}
