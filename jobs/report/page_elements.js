"use strict";

// What the pages that answer their reader are made of: elements, pictures, the choice of an image.

/** An element with attributes and children; text is text, never markup. */
function make(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== undefined));
  return found;
}

function put(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.style.aspectRatio = `${image.width} / ${image.height}`;
  }
  // Kept in main memory: what is shown comes from there, number by number.
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

/** A choice of images by thumbnail and name; nothing where there is only one. */
function chooser(images, choose) {
  const one = ({ name, key, thumbnail }, number) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    if (thumbnail) put(canvas, small(thumbnail));
    const radio = make("input", { type: "radio", name: "image", checked: number === 0, onchange: () => choose(number) });
    return make("label", { class: "thumb", title: key }, radio, thumbnail ? canvas : undefined, make("span", {}, name));
  };
  const legend = make("legend", {}, "Image");
  return make("fieldset", { class: "images", hidden: images.length < 2 }, legend, ...images.map(one));
}

function small({ width, height, rgb }) {
  const image = new ImageData(width, height);
  const bytes = bytesOf(rgb);
  for (let i = 0; i < width * height; i++) image.data.set([...bytes.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  return image;
}

/** Of base64. */
function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
