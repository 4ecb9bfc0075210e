// The ranking page: the order of the answers by keys, by drag and by buttons.
import { $, begin, config, draftKey, el, enter, fill, flush, letter, me, notice, persist, post, put, Refused, say, store, stored, turn, uuid, waiting } from "./common.js";
import { grab, moved } from "./drag.js";

const GRADES = ["accuracy", "helpfulness", "safety"], MARKS = ["good", "acceptable", "bad"];
const FLAGS = ["The answer says which model it is", "Unsafe", "Broken or cut"];
const SKIPS = ["I cannot judge this", "Not in my language", "The prompt is unclear"];
const empty = () => ({ groups: [], bad: false, grades: {}, reason: "", n: 0 });
let task = null, draft = empty(), steps = [], tie = false, busy = true;
let marked = !!stored("feedback.markdown"), stacked = !!stored("feedback.stack");
let started = 0, visible = 0, since = 0, active = 0;
const count = () => task.answers.length;
const position = (index) => draft.groups.findIndex((group) => group.includes(index));
const unplaced = () => task.answers.map((_, index) => index).filter((index) => position(index) < 0);

// Stored drafts name answers by their keys, as judgements do.
const packed = () => ({
  groups: draft.groups.map((group) => group.map((index) => task.answers[index].key)), bad: draft.bad, reason: draft.reason, n: draft.n,
  grades: Object.fromEntries(Object.entries(draft.grades).map(([index, grade]) => [task.answers[index].key, grade])),
});
function unpacked(kept) {
  if (!kept) return empty();
  const index = (key) => task.answers.findIndex((answer) => answer.key === key);
  return {
    groups: (kept.groups || []).map((group) => group.map(index).filter((at) => at >= 0)).filter((group) => group.length), bad: !!kept.bad,
    grades: Object.fromEntries(Object.entries(kept.grades || {}).map(([key, grade]) => [index(key), grade])), reason: kept.reason || "", n: kept.n || 0,
  };
}

// Judgements of this browser, to begin with after an undo.
const judged = () => stored(`${draftKey()}judged`) || [];

/* An item. */
function show(next) {
  task = next.task;
  progress(next.progress);
  $("work").hidden = $("judge").hidden = !task;
  $("end").hidden = !!task;
  steps = []; tie = false; busy = false;
  if (!task) {
    $("end-text").textContent = `You have judged ${next.progress.done} of ${next.progress.done + next.progress.left} items. Others may still hold some: look again later.`;
    say("Nothing is left to judge.");
    return;
  }
  const local = stored(draftKey());
  const kept = next.undone === task.item ? judged().find((one) => one.item === task.item)?.draft : null;
  draft = unpacked(kept ?? (local?.item === task.item && local.draft.n > (task.draft?.n ?? -1) ? local.draft : task.draft));
  if (kept) saveDraft("undo");
  started = Date.now(); visible = 0; since = document.hidden ? 0 : performance.now(); active = Date.now();
  drawPrompt();
  drawAnswers();
  draw();
  scrollTo(0, 0);
  $("answers").focus({ preventScroll: true });
  say(`Item with ${count()} answers. ${task.prompt.at(-1)?.text.slice(0, 200) ?? ""}`);
}
function progress({ done, left, per_hour, median_seconds }) {
  $("bar").max = Math.max(1, done + left);
  $("bar").value = done;
  const parts = [`${done} done, ${left} left`];
  if (per_hour) parts.push(`${Math.round(per_hour)} per hour`);
  if (median_seconds) parts.push(`median ${median_seconds < 10 ? median_seconds.toFixed(1) : Math.round(median_seconds)} s`);
  $("counts").textContent = parts.join(" · ");
}
function drawPrompt() {
  $("turns").replaceChildren(...task.prompt.map((message) => turn(message, marked)));
  $("turns").classList.add("folded");
  const long = $("turns").scrollHeight > $("turns").clientHeight + 4;
  $("fold").hidden = !long;
  fold(!long);
}
function fold(open) {
  $("turns").classList.toggle("folded", !open);
  $("fold").setAttribute("aria-expanded", open);
  $("fold").textContent = open ? "Show less" : "Show all";
}
function drawAnswers() {
  const columns = count() <= 4 ? count() : count() <= 6 ? 3 : Math.ceil(count() / 3) > 3 ? 4 : 3;
  $("answers").style.setProperty("--columns", columns);
  $("answers").replaceChildren(...task.answers.map((answer, index) => {
    const name = letter(index), act = (text, label, run) => {
      const made = el("button", { type: "button", textContent: text, onclick: run });
      made.setAttribute("aria-label", label);
      return made;
    };
    const head = el("header", {}, chip(index), el("kbd", { textContent: index + 1 }), el("span", { className: "place" }),
      act("Next", `Put answer ${name} next in the order`, () => place(index)),
      act("= Tie", `Tie answer ${name} with the one before`, () => { tie = true; place(index, true); }));
    const text = fill(el("div", { className: "text", dir: "auto", tabIndex: 0 }), answer.text, marked);
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", `Text of answer ${name}`);
    const card = el("article", { className: "answer" }, head, text, config.grades ? grades(index) : null);
    card.setAttribute("aria-label", `Answer ${name}`);
    return card;
  }));
}
function grades(index) {
  const box = el("fieldset", { className: "grades" }), name = letter(index);
  box.setAttribute("aria-label", `Grades of answer ${name}`);
  for (const grade of GRADES) {
    const choices = MARKS.map((mark) => {
      const input = el("input", { type: "radio", name: `${grade}-${index}`, value: mark, onchange: () => change(() => { draft.grades[index] = { ...draft.grades[index], [grade]: mark }; }) });
      return el("label", {}, input, mark);
    });
    const row = el("span", { className: "choices" }, ...choices);
    row.setAttribute("role", "radiogroup");
    row.setAttribute("aria-label", `${grade} of answer ${name}`);
    box.append(el("div", {}, el("span", { textContent: grade }), row));
  }
  return box;
}

/* The state of the judgement on the page. */
function chip(index) {
  const made = el("button", { type: "button", className: "chip", textContent: letter(index) });
  made.dataset.index = index;
  made.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    shift(index, step);
    document.querySelector(`#order .chip[data-index="${index}"], #tray .chip[data-index="${index}"]`)?.focus();
  };
  made.onclick = () => { if (!moved()) place(index); };
  made.onpointerdown = (event) => { if (!busy) grab(event, letter(index), (zone) => drop(index, zone)); };
  return made;
}
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] || "th"}`;
function draw() {
  const focused = document.activeElement?.dataset?.index, inStrip = document.activeElement?.closest?.(".strip");
  const nodes = [];
  const slot = (at) => { const made = el("span", { className: "slot zone", textContent: at && at < draft.groups.length ? "›" : "" }); made.dataset.slot = at; return made; };
  draft.groups.forEach((group, at) => {
    const made = el("span", { className: "group zone" }, el("span", { className: "rank", textContent: ordinal(at + 1) }), ...group.map(chip));
    made.dataset.group = at;
    nodes.push(slot(at), made);
  });
  nodes.push(slot(draft.groups.length));
  $("order").replaceChildren(...nodes);
  $("tray").replaceChildren(...unplaced().map(chip));
  for (const made of document.querySelectorAll(".strip .chip")) {
    const index = Number(made.dataset.index), at = position(index);
    made.setAttribute("aria-label", `Answer ${letter(index)}, ${at < 0 ? "not placed" : ordinal(at + 1)}; left and right arrows move it`);
  }
  if (inStrip && focused !== undefined) document.querySelector(`.strip .chip[data-index="${focused}"]`)?.focus();
  [...$("answers").children].forEach((card, index) => {
    const at = position(index), tied = at >= 0 && draft.groups[at].length > 1;
    card.classList.toggle("placed", at >= 0);
    card.classList.toggle("rejected", draft.bad);
    card.querySelector(".place").textContent = draft.bad ? "bad" : at < 0 ? "" : `${ordinal(at + 1)}${tied ? " (tie)" : ""}`;
    card.querySelector("header button:not(.chip)").textContent = at < 0 ? "Next" : "Remove";
    card.querySelector("header button:not(.chip)").setAttribute("aria-label", at < 0 ? `Put answer ${letter(index)} next in the order` : `Take answer ${letter(index)} out of the order`);
    card.querySelector(".chip").setAttribute("aria-label", `Answer ${letter(index)}`);
    for (const input of card.querySelectorAll("input")) input.checked = draft.grades[index]?.[input.name.split("-")[0]] === input.value;
  });
  if (document.activeElement !== $("reason")) $("reason").value = draft.reason;
  $("bad").setAttribute("aria-pressed", draft.bad);
  $("submit").disabled = busy || !complete();
  for (const id of ["equal", "bad", "skip", "flag", "undo"]) $(id).disabled = busy;
  $("hint").textContent = hint();
}
const complete = () => draft.bad || (draft.groups.length > 0 && unplaced().length <= 1);
function hint() {
  if (busy) return "Saving…";
  if (draft.bad) return "All answers are bad.";
  if (tie) return "The next answer ties with the one before.";
  const left = unplaced().length;
  if (!draft.groups.length) return count() === 2 ? "Better answer: A left, D right." : `Best answer first: 1 to ${count()}.`;
  if (left === 1) return `${letter(unplaced()[0])} is last: submit, or place it.`;
  return left ? `${left} to place.` : "Ready to submit.";
}
/* A change of the judgement, which Undo takes back. */
function change(run, text) {
  if (busy || !task) return;
  const { groups, bad, grades, reason } = draft;
  steps.push(structuredClone({ groups, bad, grades, reason }));
  run();
  draft.groups = draft.groups.filter((group) => group.length);
  tidy(text);
}
function tidy(text) {
  draft.n++;
  draw();
  saveDraft(text ?? order());
  say(text ?? order());
}
function order() {
  if (draft.bad) return "All bad.";
  return draft.groups.map((group, at) => `${ordinal(at + 1)}: ${group.map(letter).join(" and ")}`).join(", ") || "No order yet.";
}
const without = (index) => { draft.groups = draft.groups.map((group) => group.filter((other) => other !== index)); };
function place(index, keep) {
  if (busy || !task || index >= count()) return;
  const joined = tie && draft.groups.length > 0;
  tie = false;
  change(() => {
    draft.bad = false;
    const placed = position(index) >= 0;
    if (placed && !joined && !keep) { without(index); return; }
    without(index);
    draft.groups = draft.groups.filter((group) => group.length);
    if (joined && draft.groups.length) draft.groups.at(-1).push(index); else draft.groups.push([index]);
  });
}
function shift(index, step) {
  const at = position(index), alone = at >= 0 && draft.groups[at].length === 1;
  if (at < 0) { if (step < 0) place(index); return; }
  change(() => {
    // Out of a tie into a group of its own; from there over the neighbour, through a tie with it.
    draft.groups[at] = draft.groups[at].filter((other) => other !== index);
    if (!alone) { draft.groups.splice(step < 0 ? at : at + 1, 0, [index]); return; }
    const to = at + step;
    if (to < 0 || to >= draft.groups.length) draft.groups[at].push(index); else draft.groups[to].push(index);
  });
}
const best = (index) => change(() => { draft.bad = false; draft.groups = [[index], [1 - index]]; });
const allEqual = () => change(() => { draft.bad = false; draft.groups = [task.answers.map((_, index) => index)]; }, "All equal.");
const allBad = () => change(() => { draft.bad = !draft.bad; draft.groups = []; });
const clear = () => change(() => { draft.groups = []; draft.bad = false; });

function drop(index, { slot, group }) {
  change(() => {
    draft.bad = false;
    without(index);
    if (group !== undefined) draft.groups[group].push(index);
    else if (slot !== undefined) draft.groups.splice(slot, 0, [index]);
  });
}

/* Drafts: in the browser at once, in the database as fast as it takes them. */
let saving = null, unsaved = false, events = [];
function saveDraft(event) {
  if (event) events.push(event);
  store(draftKey(), { item: task.item, draft: packed() });
  unsaved = true;
  saving ??= sendDrafts().finally(() => { saving = null; });
}
async function sendDrafts() {
  while (unsaved && task && !busy) {
    unsaved = false;
    const sent = events.splice(0, 50);
    // A draft that does not arrive is in the browser, and the next one contains it.
    try { await post("api/draft", { item: task.item, draft: packed(), events: sent }, { keepalive: true }); } catch { /* see above */ }
  }
}
const seen = () => visible + (since ? performance.now() - since : 0);

/* Judgements. */
async function submit(kind, reason) {
  if (busy || !task) return;
  if (!kind) {
    if (!complete()) { say(hint()); return; }
    if (!draft.bad && unplaced().length) draft.groups.push(unplaced());
    kind = draft.bad ? "all_bad" : "rank";
  }
  const { groups, grades } = packed();
  const ranks = Object.fromEntries(groups.flatMap((group, at) => group.map((key) => [key, at + 1])));
  put("api/judge", {
    id: uuid(), item: task.item, kind, ranks: kind === "rank" ? ranks : {}, shown: task.answers.map((answer) => answer.key), grades,
    reason: reason ?? draft.reason.trim(), started, ms_visible: Math.round(seen()), guideline_version: config.guideline_version,
  });
  store(`${draftKey()}judged`, [{ item: task.item, draft: packed() }, ...judged()].slice(0, 50));
  say("Saving.");
  await advance();
}
/* Sends what waits, and shows what is next. */
async function advance(undone) {
  busy = true;
  if (task) draw();
  // A draft that arrived after its judgement would be shown when the item comes again.
  await saving;
  try {
    const last = await flush();
    if (last && !last.refused) store(draftKey(), null);
    if (undone && last?.undone === null) { nothing(); return; }
    show(last?.undone ? last : await persist("api/next", {}));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notice(`The server refuses: ${error.message}`);
    busy = false;
  }
}
function nothing() {
  busy = false;
  if (task) draw();
  say("There is nothing to undo.");
  $("hint").textContent = "There is nothing to undo.";
}
async function undo() {
  if (busy) return;
  if (tie) { tie = false; draw(); return; }
  if (steps.length) { Object.assign(draft, steps.pop()); tidy(); return; }
  put("api/undo", { id: uuid() });
  await advance(true);
}

/* Dialogs. */
function ask(kind) {
  if (busy || !task) return;
  const options = kind === "flag" ? FLAGS : SKIPS;
  $("ask-title").textContent = kind === "flag" ? "Flag this item" : "Skip this item";
  $("ask-options").replaceChildren(el("legend", { textContent: "Why?" }), ...options.map((text, index) =>
    el("label", {}, el("input", { type: "radio", name: "why", value: text, checked: index === 0 }), el("kbd", { textContent: index + 1 }), text)));
  $("ask-text").value = "";
  $("ask").querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const chosen = $("ask").querySelector("input[name=why]:checked").value, more = $("ask-text").value.trim();
    $("ask").close();
    submit(kind, more ? `${chosen}: ${more}` : chosen);
  };
  $("ask").showModal();
  $("ask").querySelector("input").focus();
}
$("ask").onkeydown = (event) => {
  const digit = /^[1-3]$/.exec(event.key);
  if (!digit || event.target === $("ask-text")) return;
  const input = $("ask").querySelectorAll("input[name=why]")[digit[0] - 1];
  input.checked = true;
  input.focus();
};
$("ask-cancel").onclick = () => $("ask").close();
const KEYS = [
  ["1 to 9", "put that answer next in the order, the best first; again: take it out"],
  ["=", "before a digit: tie that answer with the one before"],
  ["A, D", "with two answers: the left, the right one is better"],
  ["T", "all are equal"], ["B", "all are bad"], ["S", "skip, with a reason"], ["F", "flag: names its model, unsafe, broken"],
  ["Z, Backspace", "take back the last step, then the last judgement, any number of them"],
  ["Enter", "submit"], ["Esc", "empty the order"], ["R", "write a reason"], ["P", "show the whole prompt"],
  ["V", "answers below each other"], ["M", "show Markdown; no HTML, no links"], ["?", "this help"],
  ["← →", "on a letter of the order: move it; drag works too"],
];
function help() {
  $("key-table").replaceChildren(...KEYS.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", { textContent: name })), el("td", { textContent: text }))));
  $("guideline").textContent = config.guideline || "Rank the answers from the best to the worst.";
  $("keys").showModal();
}
$("keys-close").onclick = () => $("keys").close();

/* Buttons and keys. */
function toggleMarked() {
  marked = !marked;
  store("feedback.markdown", marked);
  view();
  if (task) { drawPrompt(); [...$("answers").children].forEach((card, index) => fill(card.querySelector(".text"), task.answers[index].text, marked)); }
}
function toggleStack() { stacked = !stacked; store("feedback.stack", stacked); view(); }
function view() {
  document.body.classList.toggle("stacked", stacked);
  $("stack").setAttribute("aria-pressed", stacked);
  $("markdown").setAttribute("aria-pressed", marked);
}
$("markdown").onclick = toggleMarked;
$("stack").onclick = toggleStack;
$("fold").onclick = () => fold($("turns").classList.contains("folded"));
$("help").onclick = help;
$("equal").onclick = () => allEqual();
$("bad").onclick = allBad;
$("skip").onclick = () => ask("skip");
$("flag").onclick = () => ask("flag");
$("undo").onclick = $("end-undo").onclick = undo;
$("submit").onclick = () => submit();
$("again").onclick = () => advance();
$("who").onclick = async () => { if (busy && task) return; await enter(); $("who").textContent = config.tokens ? "Token" : me.name; advance(); };
$("reason").oninput = () => { if (busy) return; draft.reason = $("reason").value; draft.n++; saveDraft(); };
// After a click the keys are those of the page again, so that Enter submits.
document.addEventListener("click", (event) => { if (event.detail > 0) event.target.closest?.("button")?.blur(); });
const ACTIONS = {
  t: allEqual, b: allBad, s: () => ask("skip"), f: () => ask("flag"), z: undo, backspace: undo, escape: clear, v: toggleStack, m: toggleMarked, "?": help,
  p: () => { if (!$("fold").hidden) fold($("turns").classList.contains("folded")); },
  r: () => $("reason").focus(), "=": () => { tie = draft.groups.length > 0; draw(); say(hint()); },
};
document.addEventListener("keydown", (event) => {
  active = Date.now();
  const typing = event.target.matches?.("input[type=text], input[type=password], textarea");
  if (typing && event.target === $("reason") && ["Enter", "Escape"].includes(event.key) && !event.isComposing) { event.preventDefault(); $("reason").blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || typing || document.querySelector("dialog[open]")) return;
  const name = event.key.toLowerCase(), digit = name !== "=" && /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  let run = ACTIONS[name];
  if (name === "enter") run = event.target.matches?.("button, summary") ? null : () => submit();
  if (task && count() === 2 && (name === "a" || name === "d")) run = () => best(name === "a" ? 0 : 1);
  if (!run && digit) run = () => place(digit[1] - 1);
  if (!run || event.repeat || (!task && !["?", "z", "backspace"].includes(name))) return;
  event.preventDefault();
  run();
});
for (const name of ["pointerdown", "wheel"]) addEventListener(name, () => { active = Date.now(); }, { passive: true });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { visible = seen(); since = 0; } else since = performance.now();
  if (task && !busy) saveDraft(document.hidden ? "hidden" : "visible");
});
// The lease is prolonged while someone works on the item.
setInterval(() => {
  if (task && !busy && !document.hidden && Date.now() - active < 600000) post("api/heartbeat", { item: task.item }).catch(() => {});
}, 60000);

view();
begin().then(() => { if (waiting().length) notice("A judgement of the last visit was not acknowledged; it is sent again."); return advance(); }).then(() => { if (!waiting().length) notice(""); })
  .catch((error) => notice(`The page cannot begin: ${error.message}`));
