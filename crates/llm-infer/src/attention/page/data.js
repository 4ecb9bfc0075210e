'use strict';
// The data of the page: maps of weights, and matrices between tokens or words.
const D = JSON.parse(document.getElementById('data').textContent);
const T = D.tokens.length, L = D.layers, H = D.heads, W = D.words.length;

function bytesOf(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

const maps = bytesOf(D.maps), norms = bytesOf(D.norms);
const MAP_BYTES = D.keep ? T * D.keep * 3 : T * (T + 1) / 2;
const WEIGHT = Float32Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
const wordOf = new Uint16Array(T);
D.words.forEach((word, index) => wordOf.fill(index, word.start, word.end));

/** Calls f(key, weight) for the kept weights of a query. */
function eachOfRow(map, query, f) {
  if (D.keep) {
    let at = map * MAP_BYTES + query * D.keep * 3;
    for (let i = 0; i < D.keep; i++, at += 3) {
      const key = maps[at] | maps[at + 1] << 8;
      if (key !== 65535) f(key, WEIGHT[maps[at + 2]]);
    }
    return;
  }
  const at = map * MAP_BYTES + query * (query + 1) / 2;
  for (let key = 0; key <= query; key++) f(key, WEIGHT[maps[at + key]]);
}

const mapOf = (layer, head) => layer * H + head;
const rolloutOf = layer => L * H + layer;
const normOf = (map, key) => WEIGHT[norms[map * T + key]] * D.norm_scale[map];

/** The maps that a state shows, and whether they are multiplied by the value norms. */
function mapsOf(state) {
  if (state.kind === 'rollout') return [[rolloutOf(state.layer)], false];
  const heads = state.head === 'mean' ? Array.from({ length: H }, (_, head) => head) : [state.head];
  return [heads.map(head => mapOf(state.layer, head)), state.kind === 'value'];
}

/** Calls f(query, key, weight) for a map; the first token is left out if the state says so. */
function eachWeight(map, valued, skip, f) {
  for (let query = 0; query < T; query++) {
    eachOfRow(map, query, (key, weight) => {
      if (weight > 0 && !(skip && key === 0)) f(query, key, valued ? weight * normOf(map, key) : weight);
    });
  }
}

let cached = { key: '' };
/** The matrix that a state shows: n, its values row by row, and its largest value. */
function matrixOf(state) {
  const key = [state.layer, state.head, state.kind, state.skip, state.tokens].join();
  if (cached.key === key) return cached;
  const n = state.tokens ? T : W, values = new Float32Array(n * n);
  const [list, valued] = mapsOf(state);
  for (const map of list) {
    eachWeight(map, valued, state.skip, (query, k, weight) => {
      if (state.tokens) values[query * n + k] += weight / list.length;
      else {
        const word = D.words[wordOf[query]];
        values[wordOf[query] * n + wordOf[k]] += weight / list.length / (word.end - word.start);
      }
    });
  }
  let max = 0;
  for (const value of values) if (value > max) max = value;
  return cached = { key, n, values, max };
}

/** The weight from one word to another in one map: the mean over the tokens that look, the sum over those looked at. */
function link(map, valued, skip, from, to) {
  let sum = 0;
  const word = D.words[from];
  for (let query = word.start; query < word.end; query++) {
    eachOfRow(map, query, (key, weight) => {
      if (wordOf[key] === to && !(skip && key === 0)) sum += valued ? weight * normOf(map, key) : weight;
    });
  }
  return sum / (word.end - word.start);
}

/** A value as a share of the colour scale, from 0 to 1. The log scale has three decades below the largest value. */
function shade(value, max, log) {
  if (!(value > 0) || !(max > 0)) return 0;
  return log ? Math.max(0, 1 + Math.log10(value / max) / 3) : value / max;
}

/** The names of the words: with their numbers if they occur more than once. */
const NAMES = (() => {
  const count = new Map(), seen = new Map();
  for (const { text } of D.words) count.set(text, (count.get(text) || 0) + 1);
  return D.words.map(({ text }) => {
    seen.set(text, (seen.get(text) || 0) + 1);
    return count.get(text) > 1 ? `${text}:${seen.get(text)}` : text;
  });
})();
const nameOf = (index, tokens) => tokens ? D.tokens[index].trim() || '␣' : NAMES[index];

const share = value => value >= 0.0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toFixed(1)} %`;
/** A weight as a share; a value-weighted one is a norm. */
const numberOf = (value, state) => state.kind === 'value' ? value.toPrecision(2) : share(value);
