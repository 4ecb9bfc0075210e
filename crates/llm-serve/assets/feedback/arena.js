// The arena: two models answer one prompt, and a person says which answer is better before it is known who wrote it.
import { $, begin, config, draftKey, el, enter, fill, flush, me, notice, persist, put, say, send, store, stored, turn, uuid } from "./common.js";

const VOTES = ["left", "right", "tie", "both_bad"], PLACES = { left: ["better", ""], right: ["", "better"], tie: ["tie", "tie"], both_bad: ["bad", "bad"] };
// phase: ask, stream, vote, voted, shown
let battle = null, phase = "ask", marked = !!stored("feedback.markdown"), busy = false;
let started = 0, visible = 0, since = 0;
const seen = () => visible + (since ? performance.now() - since : 0);
const keep = () => store(`${draftKey()}battle`, battle && { ...battle, phase });

function draw() {
  $("prompt").hidden = !battle;
  if (battle) $("turns").replaceChildren(turn({ role: "user", text: battle.prompt }, marked));
  [0, 1].forEach((side) => fill($(`text-${side}`), battle?.texts[side] ?? "", marked && phase !== "stream"));
  document.querySelectorAll(".answer").forEach((card, side) => {
    card.classList.toggle("running", phase === "stream" && !battle.ends[side]);
    card.classList.toggle("placed", battle?.vote === ["left", "right"][side] || battle?.vote === "tie");
    card.classList.toggle("rejected", battle?.vote === "both_bad");
    card.querySelector(".place").textContent = [battle?.names?.[side], battle?.vote ? PLACES[battle.vote][side] : ""].filter(Boolean).join(" · ");
  });
  for (const id of VOTES) $(id).disabled = busy || phase !== "vote";
  $("votes").hidden = !["stream", "vote"].includes(phase);
  $("after").hidden = !["voted", "shown"].includes(phase);
  $("undo").hidden = $("reveal").hidden = phase !== "voted";
  for (const id of ["undo", "reveal", "next"]) $(id).disabled = busy;
  $("write").hidden = phase !== "ask";
  $("send").disabled = busy;
  $("hint").textContent = { ask: "", stream: "Both models answer.", vote: "Which answer is better?", voted: "Your vote is kept. You can still undo it.", shown: "The models are known, so this vote stays." }[phase];
}
/* Asks both models and shows their answers as they are written. */
async function ask(prompt) {
  battle = { prompt, texts: ["", ""], ends: [null, null] };
  phase = "stream"; busy = true;
  notice("");
  draw();
  say("Both models answer.");
  try {
    const response = await send("api/battle", { prompt });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) take(JSON.parse(line));
      draw();
    }
    if (!battle.id) throw new Error("the answers were cut; ask again");
    phase = "vote";
    started = Date.now(); visible = 0; since = document.hidden ? 0 : performance.now();
    say(`Both have answered. Left: ${battle.texts[0]} Right: ${battle.texts[1]}`);
  } catch (error) {
    notice(`No answers: ${error.message}`);
    $("prompt-text").value = prompt;
    battle = null; phase = "ask";
  }
  busy = false;
  keep();
  draw();
  if (phase === "ask") $("prompt-text").focus();
}
function take(line) {
  if (line.error) throw new Error(line.error);
  if (line.battle) battle.id = line.battle;
  else if (line.end) battle.ends[line.side] = line.end;
  else battle.texts[line.side] += line.text;
}
/* Sends what waits; what the server refuses changes nothing. */
async function act(path, body, change) {
  if (busy) return;
  busy = true;
  draw();
  put(path, { id: uuid(), battle: battle.id, ...body });
  const answer = await flush();
  busy = false;
  if (!answer?.refused) { change(answer); notice(""); }
  keep();
  draw();
}
const vote = (side) => phase === "vote" && act("api/vote", { vote: side, started, ms_visible: Math.round(seen()), guideline_version: config.guideline_version }, (answer) => {
  battle.vote = side; phase = "voted"; count(answer); say("Your vote is kept. Z takes it back, Enter shows the models, N is the next prompt.");
});
const undo = () => phase === "voted" && act("api/unvote", {}, (answer) => { battle.vote = null; phase = "vote"; count(answer); say("The vote is taken back."); });
const reveal = () => phase === "voted" && act("api/reveal", {}, (answer) => { battle.names = answer.names; phase = "shown"; say(`Left: ${answer.names[0]}. Right: ${answer.names[1]}.`); });
function next() {
  if (busy || !["voted", "shown"].includes(phase)) return;
  battle = null; phase = "ask";
  keep();
  draw();
  $("prompt-text").value = "";
  $("prompt-text").focus();
}
const count = ({ votes }) => { if (votes !== undefined) $("counts").textContent = `${votes} ${votes === 1 ? "vote" : "votes"}`; };
const KEYS = [["A ←", "the left answer is better"], ["D →", "the right one is better"], ["T", "both are equally good"], ["B", "both are bad"], ["Z, Backspace", "take the vote back, before the models are shown"],
  ["Enter", "in the prompt: ask both; after the vote: show the models"], ["N", "next prompt"], ["M", "show Markdown; no HTML, no links"], ["?", "this help"]];
function help() {
  $("key-table").replaceChildren(...KEYS.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", { textContent: name })), el("td", { textContent: text }))));
  $("guideline").textContent = config.guideline || "Say which answer is better.";
  $("keys").showModal();
}
function toggleMarked() {
  marked = !marked;
  store("feedback.markdown", marked);
  $("markdown").setAttribute("aria-pressed", marked);
  draw();
}
for (const id of VOTES) $(id).onclick = () => vote(id);
Object.entries({ undo, reveal, next, help, markdown: toggleMarked }).forEach(([id, run]) => { $(id).onclick = run; });
$("keys-close").onclick = () => $("keys").close();
$("write").onsubmit = (event) => { event.preventDefault(); const text = $("prompt-text").value.trim(); if (text && !busy) ask(text); };
$("who").onclick = async () => { if (busy) return; await enter(); await open(); };
document.addEventListener("click", (event) => { if (event.detail > 0) event.target.closest?.("button")?.blur(); });
const ACTIONS = { a: () => vote("left"), arrowleft: () => vote("left"), d: () => vote("right"), arrowright: () => vote("right"), t: () => vote("tie"), b: () => vote("both_bad"), z: undo, backspace: undo, n: next, m: toggleMarked, "?": help };
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, textarea"), name = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  // On a phone the key Enter begins a new line.
  if (event.target === $("prompt-text") && name === "enter" && !event.shiftKey && !matchMedia("(pointer: coarse)").matches) { event.preventDefault(); $("write").requestSubmit(); return; }
  if (typing || event.repeat) return;
  const run = name === "enter" ? (event.target.matches?.("button") ? null : reveal) : ACTIONS[name];
  if (run) { event.preventDefault(); run(); }
});
document.addEventListener("visibilitychange", () => { if (document.hidden) { visible = seen(); since = 0; } else since = performance.now(); });
/* Comes back to the state before a reload. */
async function open() {
  $("who").textContent = config.tokens ? "Token" : me.name;
  const kept = stored(`${draftKey()}battle`);
  battle = kept; phase = kept?.phase ?? "ask";
  const late = await flush();
  const state = await persist("api/state", { battle: battle?.id ?? null });
  count(state);
  if (battle) {
    battle.vote = state.vote; battle.names = state.names;
    phase = state.names ? "shown" : state.vote ? "voted" : "vote";
    started = started || Date.now(); since = document.hidden ? 0 : performance.now();
  }
  if (!late?.refused) notice("");
  draw();
  if (phase === "ask") $("prompt-text").focus();
}
$("markdown").setAttribute("aria-pressed", marked);
draw();
begin().then(open).catch((error) => notice(`The page cannot begin: ${error.message}`));
