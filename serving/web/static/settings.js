// SPDX-License-Identifier: Apache-2.0
// The folded settings, made from the server's list of them.

import { byId, el, readable } from "./dom.js";

/** The inputs of all settings. */
export class Settings {
  /** list: `settings` of /v1/models, without those that have a place of their own. */
  constructor(list, onChange) {
    this.fields = new Map();
    for (const setting of list) {
      const input = inputOf(setting);
      input.id = `setting-${setting.name}`;
      input.setAttribute("aria-describedby", `${input.id}-help`);
      input.addEventListener("input", () => this.count());
      const label = el("label", { for: input.id }, readable(setting.name).replace("num inference ", ""));
      const help = el("p", { className: "help", id: `${input.id}-help` }, setting.help);
      const block = el("div", { className: "setting" }, label, input, help);
      this.fields.set(setting.name, { setting, input, block });
      byId("settings-grid").append(block);
    }
    this.onChange = onChange;
    byId("reset").addEventListener("click", () => this.fill({}));
  }

  /** Shows the settings of one kind of video; the others are not sent. */
  show(wanted) {
    for (const { setting, block } of this.fields.values()) block.hidden = !wanted(setting);
    this.count();
  }

  count() {
    const changed = Object.keys(this.values()).length;
    byId("changed").textContent = changed ? `${changed} changed` : "";
    this.onChange();
  }

  /** The settings that were given, by name. */
  values() {
    const given = {};
    for (const { setting, input, block } of this.fields.values())
      if (!block.hidden && input.value !== "") given[setting.name] = input.value;
    return given;
  }

  fill(values) {
    for (const [name, { input }] of this.fields) input.value = values[name] ?? "";
    this.count();
  }

  /** Points at a setting that the server refused. */
  complain(name) {
    const field = this.fields.get(name);
    if (!field) return false;
    byId("settings").open = true;
    field.input.setAttribute("aria-invalid", "true");
    field.input.addEventListener("input", () => field.input.removeAttribute("aria-invalid"), { once: true });
    field.input.focus();
    return true;
  }
}

function inputOf(setting) {
  const usual = setting.name === "seed" ? "random" : setting.default === null ? "default" : `${setting.default}`;
  if (setting.choices.length) {
    const options = setting.choices.map((choice) => el("option", { value: choice }, readable(choice)));
    const first = setting.default === null ? "preset's" : `${readable(usual)} (default)`;
    const rest = options.filter((option) => option.value !== setting.default);
    return el("select", {}, el("option", { value: "" }, first), ...rest);
  }
  if (setting.type === "int" && setting.name !== "seed") {
    const limits = { min: setting.low, ...(setting.high === null ? {} : { max: setting.high }) };
    return el("input", { type: "number", step: 1, placeholder: usual, ...limits });
  }
  if (setting.type === "float") return el("input", { type: "number", step: "any", placeholder: usual });
  const mode = setting.name === "seed" ? "numeric" : "text";
  return el("input", { type: "text", inputMode: mode, placeholder: usual, autocomplete: "off" });
}
