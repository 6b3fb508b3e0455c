"use strict";

// Colours: sRGB and CIELAB (D65, 2 degree observer) with the constants of stages/asking/colour.py, on doubles.

const TO_XYZ = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]];
const TO_RGB = inverse(TO_XYZ);
const WHITE = [0.95047, 1, 1.08883];
const AB = 110; // y of the task "natural" is ab / 110

function inverse([[a, b, c], [d, e, f], [g, h, i]]) {
  const [p, q, r] = [e * i - f * h, f * g - d * i, d * h - e * g];
  const det = a * p + b * q + c * r;
  const cofactors = [[p, c * h - b * i, b * f - c * e], [q, a * i - c * g, c * d - a * f], [r, b * g - a * h, a * e - b * d]];
  return cofactors.map((row) => row.map((value) => value / det));
}

function mixed3([a, b, c], matrix) {
  return matrix.map(([p, q, r]) => p * a + q * b + r * c);
}

/** sRGB in 0..1 -> L in 0..100, a and b. */
function labOf(rgb) {
  const linear = rgb.map((c) => (c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92));
  const [x, y, z] = mixed3(linear, TO_XYZ).map((value, k) => {
    const share = value / WHITE[k];
    return share > 0.008856 ? Math.cbrt(share) : 7.787 * share + 16 / 116;
  });
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

/** L, a, b -> sRGB clipped to 0..1. */
function rgbOf([light, a, b]) {
  const y = (light + 16) / 116;
  const roots = [y + a / 500, y, Math.max(0, y - b / 200)];
  const xyz = roots.map((root, k) => WHITE[k] * (root > 0.2068966 ? root ** 3 : (root - 16 / 116) / 7.787));
  return mixed3(xyz, TO_RGB).map((c) => unit(c > 0.0031308 ? 1.055 * c ** (1 / 2.4) - 0.055 : 12.92 * c));
}

function unit(value) {
  return Math.min(1, Math.max(0, value));
}

/** sRGB in 0..1 -> "#rrggbb". */
function hexOf(rgb) {
  return `#${rgb.map((c) => Math.round(255 * c).toString(16).padStart(2, "0")).join("")}`;
}

function rgbFrom(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
}
