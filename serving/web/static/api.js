// SPDX-License-Identifier: Apache-2.0
// Requests to the server, with its token where it asks for one, and its events.

import { byId } from "./dom.js";

const TOKEN = "lamp-trt.token";
let asking = null;

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server replied with ${status}.`);
    Object.assign(this, { status, code: error?.code, param: error?.param });
  }
}

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** The response of a request that succeeded. Throws ApiError; asks for a token and tries again. */
export async function request(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "the server cannot be reached." });
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askForToken();
      continue;
    }
    const body = await response.json().catch(() => null);
    throw new ApiError(response.status, body?.error);
  }
}

export const json = async (path, options) => (await request(path, options)).json();

export async function objectUrl(path) {
  return URL.createObjectURL(await (await request(path)).blob());
}

/** Deletes a job even while the page goes away. */
export function deleteNow(id) {
  fetch(`v1/videos/${id}`, { method: "DELETE", keepalive: true, headers: headers() }).catch(() => {});
}

/** Server-sent events as [name, data]. Unlike an EventSource it can send a token. */
export async function* events(path, signal) {
  const response = await request(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const part = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (part("event")) yield [part("event"), JSON.parse(part("data"))];
    }
  }
}

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    const input = byId("token");
    input.value = "";
    dialog.addEventListener(
      "close",
      () => {
        sessionStorage.setItem(TOKEN, input.value.trim());
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
