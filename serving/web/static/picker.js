// SPDX-License-Identifier: Apache-2.0
// A file chosen by a click, dropped, or pasted, with its picture.

import { announce, el, fileSize } from "./dom.js";

const listening = new Set();

/** kind: "image" or "video". onChange: called with the file or null. */
export class Picker {
  constructor(root, { kind, id, title, hint, accept, onChange = () => {} }) {
    Object.assign(this, { root, kind, onChange, file: null });
    this.input = el("input", { type: "file", id, accept, className: "visually-hidden" });
    this.input.setAttribute("aria-describedby", `${id}-hint`);
    this.title = el("strong", {}, title);
    this.hint = el("span", { id: `${id}-hint` }, hint);
    const arrow = el("span", { className: "arrow", "aria-hidden": "true" }, kind === "image" ? "▣" : "▶");
    this.zone = el("label", { className: "zone", for: id }, arrow, this.title, this.hint);
    this.shown = el("div", { className: "picked", hidden: true });
    root.append(this.input, this.zone, this.shown);
    this.input.addEventListener("change", () => this.input.files[0] && this.set(this.input.files[0]));
    for (const name of ["dragover", "dragleave", "drop"]) root.addEventListener(name, (e) => this.drag(e));
    listening.add(this);
  }

  drag(event) {
    event.preventDefault();
    this.root.classList.toggle("over", event.type === "dragover");
    if (event.type !== "drop") return;
    const file = [...event.dataTransfer.files].find((each) => this.fits(each));
    if (file) this.set(file);
    else announce(`That is not ${this.kind === "image" ? "an image" : "a video"}.`);
  }

  fits(file) {
    return file.type.startsWith(`${this.kind}/`) || (this.kind === "video" && file.type === "image/gif");
  }

  get visible() {
    return this.root.offsetParent !== null;
  }

  set(file, name = file.name) {
    this.clear(false);
    this.file = file;
    this.url = URL.createObjectURL(file);
    const still = this.kind === "image" || file.type === "image/gif";
    const picture = still
      ? el("img", { src: this.url, alt: "" })
      : el("video", { src: this.url, muted: true, loop: true, autoplay: true, playsInline: true });
    const remove = el("button", { type: "button", className: "quiet", onclick: () => this.clear() }, "Remove");
    remove.setAttribute("aria-label", `Remove the ${this.kind}`);
    const text = el("div", {}, el("strong", {}, name), el("span", {}, fileSize(file.size)));
    this.shown.replaceChildren(picture, text, remove);
    this.zone.hidden = true;
    this.shown.hidden = false;
    announce(`${name} is chosen.`);
    this.onChange(file);
  }

  clear(tell = true) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.file = null;
    this.input.value = "";
    this.shown.replaceChildren();
    this.shown.hidden = true;
    this.zone.hidden = false;
    if (!tell) return;
    this.input.focus();
    this.onChange(null);
  }
}

document.addEventListener("paste", (event) => {
  for (const file of event.clipboardData?.files ?? []) {
    const picker = [...listening].find((each) => each.visible && each.fits(file));
    if (!picker) continue;
    event.preventDefault();
    picker.set(file, file.name || "pasted image");
    return;
  }
});

// A file that misses its place must not replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
