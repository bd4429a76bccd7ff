// SPDX-License-Identifier: Apache-2.0
// One video in the gallery: its state, pictures, and what can be done with it.

import { deleteNow, events, json, objectUrl, request } from "./api.js";
import { announce, calm, duration, el, readable } from "./dom.js";
import { change, forget } from "./history.js";

const POLL_MS = 2000;
const STREAMS = 3; // browsers open six connections to a server
const STAGES = {
  make_first_frame: "Making the first frame",
  invert: "Reading the video",
  denoise: "Making the video",
};
let streams = 0;

const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) if (isIntersecting) target.showVideo();
}, { rootMargin: "300px" });

export class Job {
  /**
   * entry: of history.js. model: of /v1/models. actions: again(job), edit(job), removed(job), changed().
   * own: made by this page, so that it stops when the page is closed; another tab may show it too.
   */
  constructor(entry, model, actions, own) {
    const stops = own && !entry.keep;
    Object.assign(this, { entry, model, actions, stops, state: { status: "queued" }, at: Date.now() });
    this.gone = new AbortController();
    this.build();
    this.render();
  }

  get id() {
    return this.entry.id;
  }

  get ended() {
    return ["completed", "failed", "expired"].includes(this.state.status);
  }

  get prompt() {
    return this.entry.form.prompt;
  }

  build() {
    const [width, height] = this.model.size.split("x");
    this.stage = el("div", { className: "stage" });
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.showVideo = () => this.showVideo();
    this.bar = el("progress", { max: 100, "aria-label": "progress" });
    this.text = el("p", { className: "state" });
    this.left = el("p", { className: "left" });
    const facts = [readable(this.entry.form.motion ?? this.model.default_motion)];
    if (this.entry.kind === "edit") facts.unshift("edit");
    this.facts = el("ul", { className: "facts" }, ...facts.map((fact) => el("li", {}, fact)));
    this.buttons = el("div", { className: "buttons" });
    const title = el("h3", { title: this.prompt }, this.prompt);
    const line = el("div", { className: "line" }, this.text, this.left);
    const body = el("div", { className: "body" }, title, this.facts, this.bar, line, this.buttons);
    this.card = el("article", { className: "job", tabIndex: -1 }, this.stage, body);
    this.card.setAttribute("aria-label", `Video: ${this.prompt}`);
  }

  /** Follows the job to its end: by its events, or by asking while other jobs have the connections. */
  async follow() {
    while (!this.ended && !this.gone.signal.aborted) {
      try {
        if (streams < STREAMS) await this.stream();
        else this.take(await json(`v1/videos/${this.id}`, { signal: this.gone.signal }));
      } catch (error) {
        if (this.gone.signal.aborted) return;
        if (error.status === 404) this.take({ status: "expired" });
      }
      if (!this.ended) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  async stream() {
    streams += 1;
    try {
      const query = `previews=true&stop_on_leave=${this.stops}`;
      for await (const [name, data] of events(`v1/videos/${this.id}/events?${query}`, this.gone.signal)) {
        if (name === "preview") this.showPreview(data);
        else if (name === "withdrawn") this.withdraw();
        else if (name === "deleted") this.take({ status: "expired" });
        else if (name === "completed") this.take(await json(`v1/videos/${this.id}`));
        else this.take({ ...data, status: name === "progress" ? "in_progress" : name });
      }
    } finally {
      streams -= 1;
    }
  }

  take(state) {
    const before = this.state.status;
    this.state = state;
    this.at = Date.now();
    this.render();
    if (before === state.status) return;
    if (this.ended) this.withdraw();
    if (state.status === "completed") near.observe(this.stage);
    if (this.ended) {
      change(this.id, { ended: true });
      if (!this.entry.ended) announce(`${this.prompt}: ${this.text.textContent}`);
      this.entry.ended = true;
    }
    this.actions.changed();
  }

  render() {
    const { status, error } = this.state;
    this.card.dataset.status = status;
    this.bar.hidden = status !== "in_progress";
    this.bar.value = this.state.progress ?? 0;
    this.text.textContent = describe(this.state);
    this.tick();
    if (status === "failed") this.note(error?.code === "content_policy" ? "⊘" : "!", error?.message ?? "failed");
    if (status === "expired") this.note("–", "The server no longer has this video.");
    if (this.drawn !== status) this.renderButtons();
    this.drawn = status;
    const seed = this.state.seed ?? this.entry.form.seed;
    if (seed !== undefined && !this.seed) this.facts.append((this.seed = el("li", {}, `seed ${seed}`)));
    if (!this.ended && !this.preview) this.wait();
  }

  /** Keeps the remaining time going between events. */
  tick() {
    if (this.ended) {
      this.left.textContent = "";
      return;
    }
    const { seconds_left: given, status } = this.state;
    if (given === null || given === undefined) {
      this.left.textContent = status === "in_progress" ? "measuring the time left…" : "";
      return;
    }
    const left = given - (Date.now() - this.at) / 1000;
    this.left.textContent = left < -10 ? "taking longer than usual" : `${duration(left)} left`;
  }

  renderButtons() {
    const { status } = this.state;
    const button = (text, onclick, className = "") => el("button", { type: "button", className, onclick }, text);
    const buttons = [];
    if (!this.ended) buttons.push(button("Cancel", () => this.remove(), "danger"));
    if (this.ended) buttons.push(button("Again with this seed", () => this.actions.again(this)));
    if (status === "completed") {
      buttons.push(button("Edit", () => this.actions.edit(this)));
      buttons.push(this.download("Download", "video", "mp4"));
      buttons.push(this.download("Settings file", "settings", "mp4.json"));
    }
    if (this.ended) buttons.push(button("Remove", () => this.remove(), "quiet"));
    for (const each of buttons) each.setAttribute("aria-label", `${each.textContent}: ${this.prompt}`);
    this.buttons.replaceChildren(...buttons);
  }

  /** A link to the video or its sidecar. With a token the link alone would not do, so a click fetches it. */
  download(text, variant, suffix) {
    const path = `v1/videos/${this.id}/content?variant=${variant}`;
    const link = el("a", { href: path, download: `${this.id}.${suffix}`, className: "button" }, text);
    link.addEventListener("click", async (event) => {
      if (link.href.startsWith("blob:")) return;
      event.preventDefault();
      link.href = await objectUrl(path);
      link.click();
    });
    return link;
  }

  wait() {
    if (this.stage.querySelector(".lamp")) return; // its animation goes on
    const lamp = el("span", { className: "lamp", "aria-hidden": "true" });
    this.stage.replaceChildren(el("div", { className: "waiting" }, lamp));
  }

  note(sign, text) {
    const mark = el("span", { className: "sign", "aria-hidden": "true" }, sign);
    this.stage.replaceChildren(el("div", { className: "note" }, mark, el("p", {}, text)));
  }

  showPreview({ webp, step }) {
    const bytes = Uint8Array.from(atob(webp), (letter) => letter.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
    const picture = el("img", { className: "preview", src: url, alt: `Preview after step ${step + 1}` });
    const old = this.preview;
    this.preview = url;
    const put = () => {
      if (this.preview === url) this.stage.replaceChildren(picture);
      if (old) URL.revokeObjectURL(old);
    };
    picture.decode().then(put, put);
  }

  withdraw() {
    if (!this.preview) return;
    URL.revokeObjectURL(this.preview);
    this.preview = null;
    if (!this.ended) this.wait();
  }

  async showVideo() {
    if (this.video || this.state.status !== "completed") return;
    near.unobserve(this.stage);
    this.video = el("video", { loop: true, muted: true, autoplay: !calm(), controls: true, playsInline: true });
    this.video.setAttribute("aria-label", this.prompt);
    try {
      this.video.src = await objectUrl(`v1/videos/${this.id}/content`);
      this.stage.replaceChildren(this.video);
    } catch (error) {
      this.note("!", error.message);
    }
  }

  async remove() {
    this.gone.abort();
    if (this.state.status !== "expired")
      await request(`v1/videos/${this.id}`, { method: "DELETE" }).catch(() => {});
    forget(this.id);
    near.unobserve(this.stage);
    for (const url of [this.preview, this.video?.src]) if (url) URL.revokeObjectURL(url);
    this.card.remove();
    announce("The video is removed.");
    this.actions.removed(this);
  }

  /** The page goes away: the engine need not go on. */
  leave() {
    if (!this.ended && this.stops) deleteNow(this.id);
  }
}

function describe(state) {
  switch (state.status) {
    case "queued":
      if (state.queue_position === undefined) return "Waiting";
      return state.queue_position ? `Waiting, ${state.queue_position} before it` : "Next in the queue";
    case "in_progress":
      if (state.stage === undefined) return "Starting";
      if (state.stage === "denoise" && state.step === state.steps) return "Decoding and checking";
      return `${STAGES[state.stage] ?? state.stage}, step ${state.step} of ${state.steps}`;
    case "completed":
      return "Ready";
    case "expired":
      return "No longer there";
    default:
      return state.error?.code === "content_policy" ? "Refused by the safety checker" : "Failed";
  }
}
