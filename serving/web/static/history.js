// SPDX-License-Identifier: Apache-2.0
// This browser's memory of its jobs: ids and forms. Videos stay on the server.

const KEY = "lamp-trt.jobs";
const MOST = 60;

/** Entries {id, kind, form, keep, ended}, newest first. Damaged ones are dropped. */
export function remembered() {
  try {
    const entries = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return entries.filter((each) => /^video_[0-9a-f]{32}$/.test(each?.id) && typeof each.form === "object");
  } catch {
    return [];
  }
}

export function remember(entry) {
  store([entry, ...remembered().filter((each) => each.id !== entry.id)]);
}

export function change(id, changes) {
  store(remembered().map((each) => (each.id === id ? { ...each, ...changes } : each)));
}

export function forget(id) {
  store(remembered().filter((each) => each.id !== id));
}

function store(entries) {
  try {
    localStorage.setItem(KEY, JSON.stringify(entries.slice(0, MOST)));
  } catch {
    // private windows and full storage: the page works, without a memory
  }
}
