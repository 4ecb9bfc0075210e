// What the pages share: elements, storage, requests that are repeated until they are acknowledged, Markdown without HTML.
export const $ = (id) => document.getElementById(id);
export const el = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};
export const say = (text) => { $("status").textContent = text; };
export const stored = (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } };
export const store = (key, value) => {
  try {
    if (value === null) localStorage.removeItem(key); else localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch { return false; }
};
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
export const notice = (text) => { $("notice").hidden = !text; if ($("notice").textContent !== text) $("notice").textContent = text; };
export const letter = (index) => String.fromCharCode(65 + index);
// crypto.randomUUID needs HTTPS or this machine; these random numbers do not.
export const uuid = () => {
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = b[6] & 15 | 64; b[8] = b[8] & 63 | 128;
  return [...b].map((x, i) => ([4, 6, 8, 10].includes(i) ? "-" : "") + x.toString(16).padStart(2, "0")).join("");
};

/* Who judges: a token, or on this machine a name. */
export const me = stored("feedback.me") || {};
const account = () => (me.token ? `token ${me.token}` : `name ${me.name}`);
const key = (kind, rest = "") => `feedback.${kind}.${account()}.${rest}`;
export const draftKey = () => key("draft");
function fromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  Object.assign(me, { token, name: undefined });
  store("feedback.me", me);
  history.replaceState(null, "", location.pathname);
}
fromAddress();
export let config = null;
/* Asks for the name or the token, until the server knows it. */
export function enter(problem) {
  const dialog = $("enter"), token = config.tokens;
  $("enter-title").textContent = token ? "Your token" : "Your name";
  $("enter-name").textContent = token ? "Token" : "Name";
  $("enter-text").textContent = problem || (token ? "You got a token, or a link with it, from the person who runs this page." : "Your judgements are kept under this name.");
  $("enter-value").type = token ? "password" : "text";
  $("enter-value").value = token ? "" : me.name || "";
  return new Promise((done) => {
    dialog.oncancel = (event) => { if (!known()) event.preventDefault(); };
    dialog.onclose = () => done();
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const value = $("enter-value").value.trim();
      if (!value) return;
      // A new token of the same person sends what the old one could not.
      const kept = problem ? waiting() : [];
      Object.assign(me, token ? { token: value, name: undefined } : { name: value, token: undefined });
      store("feedback.me", me);
      for (const [name, entry] of kept) { store(key("out", entry.body.id), entry); if (name !== key("out", entry.body.id)) store(name, null); }
      dialog.close();
    };
    dialog.showModal();
    $("enter-value").select();
  });
}
const known = () => (config.tokens ? !!me.token : !!me.name);
/* Reads the settings of the server and makes sure that there is someone who judges. */
export async function begin() {
  config = await persist("api/config", {});
  if (!known()) await enter();
  $("who").textContent = config.tokens ? "Token" : me.name;
}

/* Requests. */
export class Refused extends Error {
  constructor(status, message, after) { super(message); Object.assign(this, { status, after }); }
  // Another try can succeed.
  get passes() { return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500; }
}
export async function send(path, body, more = {}) {
  const headers = { "Content-Type": "application/json", ...(config?.tokens && me.token ? { Authorization: `Bearer ${me.token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(config?.tokens ? body : { annotator: me.name, ...body }), cache: "no-store", ...more });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer");
  }
  if (response.ok) return response;
  let message = `the server answers with status ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* not of this server */ }
  throw new Refused(response.status, message, Number(response.headers.get("retry-after")) || 0);
}
export async function post(path, body, more) {
  const response = await send(path, body, more);
  try { return await response.json(); } catch { throw new Refused(0, "the answer of the server was cut"); }
}
/* Repeats a request until the server answers. Each request may be repeated: judgements have ids. */
export async function persist(path, body) {
  for (let tries = 0; ; tries++) {
    try {
      const answer = await post(path, body);
      if (tries) notice("");
      return answer;
    } catch (error) {
      if (error.status === 401 && config) { await enter(`${error.message}.`); continue; }
      if (!(error instanceof Refused) || !error.passes) throw error;
      const wait = Math.max(1000 * error.after, Math.min(15000, 250 * 2 ** tries)) * (0.75 + Math.random() / 2);
      notice(`Not saved yet: ${error.message}. Your work is kept in this browser and sent again by itself.`);
      await Promise.race([sleep(wait), new Promise((done) => addEventListener("online", done, { once: true }))]);
    }
  }
}

/* What is not acknowledged is kept in the browser, one key for each judgement, and sent in its order. */
export const waiting = () => {
  const keys = Object.keys(localStorage).filter((name) => name.startsWith(key("out")));
  return keys.map((name) => [name, stored(name)]).filter(([, entry]) => entry).sort((a, b) => a[1].at - b[1].at || (a[1].count - b[1].count));
};
let count = 0;
export function put(path, body) {
  const entry = { at: Date.now(), count: count++, path, body };
  if (!store(key("out", body.id), entry)) unstored.push(entry);
}
const unstored = [];
/* Sends all that waits; returns the last answer. */
export async function flush() {
  let last = null;
  for (;;) {
    const [name, entry] = waiting()[0] || [null, unstored[0]];
    if (!entry) return last;
    try {
      last = await persist(entry.path, entry.body);
    } catch (error) {
      store(key("refused", entry.body.id), { ...entry, message: error.message });
      notice(`The server refused a judgement, which is kept in this browser: ${error.message}`);
      last = { refused: true };
    }
    if (name) store(name, null); else unstored.shift();
  }
}

/* Colours. */
function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}
$("theme").onclick = () => { const dark = document.documentElement.dataset.theme !== "dark"; theme(dark); store("feedback.dark", dark); };
theme(stored("feedback.dark") ?? matchMedia("(prefers-color-scheme: dark)").matches);

/* Markdown as elements: no HTML, and links stay the text that they are. */
export function markdown(text) {
  const nodes = [], lines = text.split("\n");
  const list = (pattern, name) => {
    const made = el(name, {});
    while (lines.length && pattern.test(lines[0])) {
      let item = lines.shift().replace(pattern, "");
      while (lines.length && /^\s+\S/.test(lines[0]) && !pattern.test(lines[0])) item += `\n${lines.shift().trim()}`;
      made.append(el("li", {}, ...inline(item)));
    }
    return made;
  };
  while (lines.length) {
    const line = lines[0], fence = /^\s*(```+|~~~+)/.exec(line), heading = /^#{1,6}\s+(.*)/.exec(line);
    if (fence) {
      const code = [];
      lines.shift();
      while (lines.length && !lines[0].trimStart().startsWith(fence[1])) code.push(lines.shift());
      lines.shift();
      nodes.push(el("pre", {}, el("code", { textContent: code.join("\n") })));
    } else if (heading) { lines.shift(); nodes.push(el("h3", {}, ...inline(heading[1]))); }
    else if (/^\s*[-*+]\s+/.test(line)) nodes.push(list(/^\s*[-*+]\s+/, "ul"));
    else if (/^\s*\d+[.)]\s+/.test(line)) {
      const start = Number(/\d+/.exec(line)[0]), made = list(/^\s*\d+[.)]\s+/, "ol");
      made.start = start;
      nodes.push(made);
    } else if (/^>/.test(line)) {
      const quoted = [];
      while (lines.length && /^>/.test(lines[0])) quoted.push(lines.shift().replace(/^> ?/, ""));
      nodes.push(el("blockquote", {}, ...inline(quoted.join("\n"))));
    } else if (!line.trim()) lines.shift();
    else {
      const words = [];
      do words.push(lines.shift()); while (lines.length && lines[0].trim() && !/^(\s*([-*+]|\d+[.)])\s|#{1,6}\s|>|\s*```|\s*~~~)/.test(lines[0]));
      nodes.push(el("p", {}, ...inline(words.join("\n"))));
    }
  }
  return nodes;
}
function inline(text) {
  const nodes = [], pattern = /(`+)([^`]|[^`][^]*?[^`])\1(?!`)|\*\*(?=\S)([^]+?\S)\*\*|\*(?=[^\s*])([^*]*[^\s*])\*|(?<!\w)__(?=\S)([^]+?\S)__(?!\w)|(?<!\w)_(?=[^\s_])([^_]*[^\s_])_(?!\w)/g;
  let end = 0;
  for (const found of text.matchAll(pattern)) {
    const [whole, , code, strong, soft, strong2, soft2] = found;
    nodes.push(text.slice(end, found.index));
    if (code !== undefined) nodes.push(el("code", { textContent: code }));
    else if (strong ?? strong2) nodes.push(el("strong", {}, ...inline(strong ?? strong2)));
    else nodes.push(el("em", { textContent: soft ?? soft2 }));
    end = found.index + whole.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}
/* A text of a model, by textContent or as Markdown. */
export function fill(node, text, marked) {
  node.classList.toggle("marked", marked);
  if (marked) node.replaceChildren(...markdown(text)); else node.textContent = text;
  return node;
}
const ROLES = { user: "User", assistant: "Assistant", system: "System", tool: "Tool" };
export const turn = (message, marked) => el("div", { className: "turn" }, el("b", { textContent: ROLES[message.role] || message.role }), fill(el("div", { className: "text", dir: "auto" }), message.text, marked));
