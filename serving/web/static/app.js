// SPDX-License-Identifier: Apache-2.0
// The page: its form, its gallery, and the state of the server.

import { json, objectUrl } from "./api.js";
import { announce, byId, calm, el, readable } from "./dom.js";
import * as history from "./history.js";
import { Job } from "./job.js";
import { Picker } from "./picker.js";
import { Settings } from "./settings.js";

const HEALTH_MS = 5000;
const OWN_PLACE = ["first_frame_prompt"];
const CLIP = ["start", "every"];

let model;
let settings;
let framePicker;
let clipPicker;
let kind = "make";
const jobs = new Map();

// --- the form ---

function showKind(chosen) {
  kind = chosen;
  for (const name of ["make", "edit"]) {
    byId(`tab-${name}`).setAttribute("aria-selected", String(name === kind));
    byId(`tab-${name}`).tabIndex = name === kind ? 0 : -1;
  }
  const editing = kind === "edit";
  byId("form").setAttribute("aria-labelledby", `tab-${kind}`);
  byId("clip-field").hidden = !editing;
  byId("prompt-help").textContent = editing
    ? "What the edited video shows. Ctrl+Enter starts."
    : "What moves, and where. Ctrl+Enter starts.";
  byId("frame-legend").textContent = editing ? "Edited first frame" : "First frame";
  byId("submit-text").textContent = editing ? "Edit video" : "Make video";
  byId("frame-source").hidden = editing || !model.makes_first_frames;
  showFrameSource();
  complain(null);
}

const fromText = () =>
  kind === "make" && model.makes_first_frames && document.querySelector("[name=frame-source]:checked").value === "text";

function showFrameSource() {
  const text = fromText();
  byId("frame-picker").hidden = text;
  byId("frame-text").hidden = !text;
  byId("frame-help").textContent = text
    ? "SDXL draws it before the video is made, which takes longer."
    : kind === "edit"
      ? "The video's first frame with your change. Without it the video keeps its own."
      : "Drop, paste or choose an image; it is fitted to " + model.size.replace("x", " × ") + ".";
  settings.show((setting) => {
    if (CLIP.includes(setting.name)) return kind === "edit";
    return !setting.first_frame_only || text;
  });
}

function showMotions() {
  const cards = model.motions.map((name) => {
    const input = el("input", { type: "radio", name: "motion", value: name, checked: name === model.default_motion });
    const picture = el("span", { className: "example", "aria-hidden": "true" }, "∿");
    if (model.examples[name]) showExample(picture, model.examples[name]);
    return el("label", { className: "motion" }, input, picture, el("span", { className: "name" }, readable(name)));
  });
  byId("motions").replaceChildren(...cards);
}

async function showExample(place, { url, type }) {
  const source = await objectUrl(url).catch(() => null);
  if (!source) return;
  const film = type.startsWith("video/")
    ? el("video", { src: source, muted: true, loop: true, autoplay: !calm(), playsInline: true })
    : el("img", { src: source, alt: "" });
  place.replaceChildren(film);
}

/** What is sent, by name, without files. */
function values() {
  const motion = document.querySelector("[name=motion]:checked")?.value;
  const own = fromText() && byId("first_frame_prompt").value.trim();
  const given = { prompt: byId("prompt").value.trim(), motion, ...settings.values() };
  return own ? { ...given, first_frame_prompt: own } : given;
}

function body(form) {
  const data = new FormData();
  for (const [name, value] of Object.entries(form)) data.append(name, value);
  const image = fromText() ? null : framePicker.file;
  if (kind === "edit") {
    const id = byId("clip-job").value;
    if (clipPicker.file) data.append("video", clipPicker.file, "video");
    else if (id) data.append("video", id);
    if (image) data.append("first_frame", image, "image");
  } else if (image) {
    data.append("input_reference", image, "image");
  }
  return data;
}

function missing(form) {
  if (!form.prompt) return ["A prompt is missing.", byId("prompt")];
  if (kind === "edit" && !clipPicker.file && !byId("clip-job").value)
    return ["Choose the video to edit.", clipPicker.input];
  if (kind === "make" && !fromText() && !framePicker.file)
    return ["Choose a first frame.", framePicker.input];
  return null;
}

async function submit(event) {
  event.preventDefault();
  const form = values();
  const lack = missing(form);
  complain(lack?.[0] ?? null);
  if (lack) return lack[1].focus();
  const button = byId("submit");
  button.disabled = true;
  try {
    const path = kind === "edit" ? "v1/videos/edits" : "v1/videos";
    const made = await json(path, { method: "POST", body: body(form) });
    const entry = { id: made.id, kind, form: { ...form, seed: made.seed }, keep: byId("keep-running").checked };
    history.remember(entry);
    const job = add(entry, true);
    job.take(made);
    job.follow();
    announce("The video is queued.");
    if (matchMedia("(max-width: 860px)").matches) job.card.scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  } catch (error) {
    complain(error.message);
    settings.complain(error.param);
  } finally {
    button.disabled = false;
  }
  return undefined;
}

function complain(text) {
  byId("form-error").hidden = !text;
  byId("form-error").textContent = text ?? "";
}

// --- the gallery ---

/** Shows a job; own: made by this page, and shown first. */
function add(entry, own) {
  const job = new Job(entry, model, { again, edit, removed, changed: showGallery }, own);
  jobs.set(entry.id, job);
  byId("jobs")[own ? "prepend" : "append"](job.card);
  showGallery();
  return job;
}

function removed(job) {
  jobs.delete(job.id);
  showGallery();
  byId("gallery").focus({ preventScroll: true });
}

function showGallery() {
  const all = [...jobs.values()];
  byId("empty").hidden = all.length > 0;
  byId("clear").hidden = !all.some((job) => job.ended);
  const ready = all.filter((job) => job.state.status === "completed");
  const chosen = byId("clip-job").value;
  const options = ready.map((job) => el("option", { value: job.id }, job.prompt.slice(0, 60)));
  byId("clip-job").replaceChildren(el("option", { value: "" }, "none"), ...options);
  byId("clip-job").value = ready.some((job) => job.id === chosen) ? chosen : "";
  byId("clip-job-label").hidden = ready.length === 0;
}

/** Fills the form with a job's, its first frame from its sidecar, so that the same video would be made. */
async function again(job) {
  const { form } = job.entry;
  showKind(job.entry.kind);
  byId("prompt").value = form.prompt;
  for (const input of document.querySelectorAll("[name=motion]")) input.checked = input.value === form.motion;
  settings.fill({ ...form, seed: job.state.seed ?? form.seed });
  byId("first_frame_prompt").value = form.first_frame_prompt ?? "";
  if (job.state.status === "completed") await takeSidecar(job);
  byId("settings").open = true;
  byId("prompt").focus();
  byId("prompt").scrollIntoView({ block: "center" });
  announce("The form has that video's settings and seed.");
}

async function takeSidecar(job) {
  const sidecar = await json(`v1/videos/${job.id}/content?variant=settings`).catch(() => ({}));
  if (!sidecar.first_frame_png) return;
  if ("first_frame_prompt" in sidecar && job.entry.kind === "make") {
    document.querySelector("[name=frame-source][value=text]").checked = true;
    return showFrameSource();
  }
  document.querySelector("[name=frame-source][value=image]").checked = true;
  showFrameSource();
  const bytes = Uint8Array.from(atob(sidecar.first_frame_png), (letter) => letter.charCodeAt(0));
  framePicker.set(new File([bytes], "first frame of that video", { type: "image/png" }));
  return undefined;
}

function edit(job) {
  showKind("edit");
  showGallery();
  clipPicker.clear(false);
  byId("clip-job").value = job.id;
  byId("prompt").value ||= job.prompt;
  byId("prompt").focus();
}

// --- the server ---

async function showHealth() {
  let [state, text] = ["down", "server unreachable"];
  try {
    const response = await fetch("health");
    const { status, engines } = await response.json();
    const ready = engines.filter((each) => ["idle", "busy"].includes(each.state)).length;
    const word = ready === 1 ? "engine" : "engines";
    state = status;
    text = { ok: `${ready} ${word} ready`, degraded: `${ready} of ${engines.length} engines`, starting: "engines start" }[status] ?? "no engine";
  } catch {
    // the text says it
  }
  byId("health").dataset.state = state;
  byId("health-text").textContent = text;
}

function listen() {
  byId("form").addEventListener("submit", submit);
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  for (const name of ["make", "edit"]) {
    byId(`tab-${name}`).addEventListener("click", () => showKind(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      showKind(name === "make" ? "edit" : "make");
      byId(`tab-${kind}`).focus();
    });
  }
  for (const input of document.querySelectorAll("[name=frame-source]"))
    input.addEventListener("change", showFrameSource);
  byId("clip-job").addEventListener("change", () => byId("clip-job").value && clipPicker.clear(false));
  byId("clear").addEventListener("click", () => [...jobs.values()].filter((job) => job.ended).forEach((job) => job.remove()));
  byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
  addEventListener("pagehide", () => jobs.forEach((job) => job.leave()));
  setInterval(() => jobs.forEach((job) => job.tick()), 1000);
  setInterval(showHealth, HEALTH_MS);
}

async function start() {
  showHealth();
  [model] = (await json("v1/models")).data;
  const checked = model.safety === "off" ? "no picture is checked" : "pictures are checked";
  byId("model").textContent = `${model.id} · ${model.size.replace("x", " × ")} · ${model.num_frames} frames · ${checked}`;
  settings = new Settings(model.settings.filter((each) => !OWN_PLACE.includes(each.name)), () => {});
  framePicker = new Picker(byId("frame-picker"), {
    kind: "image",
    id: "frame-file",
    title: "Choose an image",
    hint: "or drop or paste one here",
    accept: "image/*",
  });
  clipPicker = new Picker(byId("clip-picker"), {
    kind: "video",
    id: "clip-file",
    title: "Choose a video",
    hint: `mp4, mov, webm or GIF with at least ${model.num_frames} frames`,
    accept: "video/mp4,video/quicktime,video/webm,image/gif",
    onChange: (file) => file && (byId("clip-job").value = ""),
  });
  showMotions();
  showKind("make");
  listen();
  for (const entry of history.remembered()) {
    const job = add(entry, false);
    json(`v1/videos/${entry.id}`)
      .then((state) => job.take(state))
      .catch((error) => error.status === 404 && job.take({ status: "expired" }))
      .finally(() => job.follow());
  }
}

start().catch((error) => {
  byId("banner").hidden = false;
  byId("banner").textContent = `The page cannot start: ${error.message}`;
});
