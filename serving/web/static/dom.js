// SPDX-License-Identifier: Apache-2.0
// Elements and texts. Every text from outside becomes a text node, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`dataset` and `aria-…` too) and children, which are nodes or texts. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "dataset") Object.assign(element.dataset, value);
    else if (key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Shows a text to screen readers, politely. */
export function announce(text) {
  byId("announcer").textContent = text;
}

export const readable = (name) => name.replaceAll(/[_-]+/g, " ");

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A duration in words; it does not pretend to more precision than an estimate has. */
export function duration(seconds) {
  if (seconds < 8) return "a few seconds";
  if (seconds < 100) return `about ${5 * Math.round(seconds / 5)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** The size of a file in words. */
export function fileSize(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
