// Asks the gateway. A key is asked for when the gateway wants one, and kept in this tab alone.

import { byId, el, show } from "./dom.js";

const KEY = "bertier-api-key";

/** The gateway cannot be reached. */
export class Gone extends Error {}

/** Return {ok, status, headers, data, tookMs}. Raises: Gone. */
export async function call(path, { method = "GET", headers = {}, body, ask = true } = {}) {
  for (;;) {
    const reply = await send(path, method, headers, body);
    if (reply.status !== 401 || !ask || declined || !(await askForKey(key() ? "The gateway does not know this key." : ""))) return reply;
  }
}

async function send(path, method, headers, body) {
  const sent = { ...headers };
  if (key()) sent.Authorization = `Bearer ${key()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const began = performance.now();
  let response, text;
  try {
    response = await fetch(path, { method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    text = await response.text();
  } catch {
    throw new Gone();
  }
  const tookMs = performance.now() - began;
  return { ok: response.ok, status: response.status, headers: response.headers, data: parse(response, text), tookMs };
}

function parse(response, text) {
  if (!(response.headers.get("content-type") ?? "").includes("json")) return text;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Return the key of this tab, or null. */
export const key = () => sessionStorage.getItem(KEY);

let asking = null;
let declined = false; // then nobody is asked again who does not want to be

/** Ask for a key; return whether one was given. Several callers share one question. */
export function askForKey(problem = "") {
  asking ??= ask(problem).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(problem) {
  return new Promise((resolve) => {
    const input = el("input", { id: "key-input", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "key-help" });
    const form = el("form", {},
      el("h2", { id: "key-title" }, "API key"),
      problem && el("p", { class: "warn", role: "alert" }, problem),
      el("label", { for: "key-input" }, "Key"), input,
      el("p", { id: "key-help", class: "soft small" }, "This gateway answers to keys only. The key stays in this tab, until you close it or forget the key, and is sent to this gateway alone."),
      el("div", { class: "actions" }, el("button", { type: "submit", class: "primary" }, "Use this key"),
        el("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    const dialog = el("dialog", { "aria-labelledby": "key-title" }, form);
    let given = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      sessionStorage.setItem(KEY, input.value.trim());
      given = true;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      declined = !given;
      dialog.remove();
      showKey();
      resolve(given);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Offer in the header to forget the key of this tab, or to enter one that was asked for. */
export function showKey() {
  const forget = () => {
    sessionStorage.removeItem(KEY);
    showKey();
  };
  const enter = async () => {
    if (await askForKey()) location.reload();
  };
  show(byId("key"), key() ? el("button", { type: "button", onclick: forget }, "Forget the key") : declined && el("button", { type: "button", onclick: enter }, "Enter a key"));
}

const ADVICE = {
  infeasible: "No plan can meet this SLO, even on an idle system. Allow more time or a lower F1 floor, choose another policy than strict, or take one of the points below.",
  overloaded: "The gateway is too busy to answer by the deadline of this request. Wait a moment and ask again, or allow more time.",
  "quota-exceeded": "This key has sent more requests than it may. Wait a moment and ask again.",
  "too-many-connections": "Too many connections are open. Wait a moment and ask again.",
  unauthenticated: "A key is needed, or the one of this tab is not known. Ask whoever runs this gateway for one.",
  forbidden: "The key of this tab may not do this. Use another key.",
  "empty-text": "Write a question and a context first.",
  "text-too-long": "The text is longer than this gateway takes. Shorten it.",
  "deadline-exceeded": "No answer was ready by the deadline. Allow more time or ask again.",
  "backend-unavailable": "No model server can answer now. The gateway keeps looking for one: ask again in a few seconds.",
};

/** Return a failed reply in plain words. */
export function failure(reply) {
  const problem = reply.data && typeof reply.data === "object" ? reply.data : {};
  const kind = String(problem.type ?? "").replace("urn:bertier:problem:", "");
  const wait = Number(reply.headers.get("retry-after"));
  const details = [problem.detail, wait && `Ask again in ${wait} s.`, problem.request_id && `Request id: ${problem.request_id}`];
  return el("div", { class: "failure", role: "alert" },
    el("strong", {}, problem.title ? `${problem.title} (${reply.status})` : `The gateway answered with status ${reply.status}`),
    ADVICE[kind] && el("p", {}, ADVICE[kind]),
    details.filter(Boolean).map((text) => el("p", { class: "soft small" }, text)));
}

/** Return what to show when the gateway cannot be reached. */
export function unreachable() {
  return el("div", { class: "failure", role: "alert" },
    el("strong", {}, "The gateway cannot be reached"),
    el("p", {}, "It may have stopped, or the network is down. Nothing you wrote is lost: ask again when it is back."));
}
