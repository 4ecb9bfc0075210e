// Draws the page and answers to its controls.
const $ = id => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const state = {
  layer: D.start.layer, head: D.start.head, kind: 'weights', log: D.keep > 0, skip: D.skip_first, tokens: false,
  word: D.start.from, target: D.start.to, cell: null, random: false, sort: 0,
};

function colours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = name => style.getPropertyValue(name).split(',').map(Number);
  return [rgb('--low'), rgb('--heat')];
}
const mix = ([low, heat], share) => low.map((value, i) => Math.round(value + (heat[i] - value) * share));
/** The colours of the shares 0 to 1 in 256 steps, as pixels. */
const palette = pair => Uint32Array.from({ length: 256 }, (_, i) => {
  const [r, g, b] = mix(pair, i / 255);
  return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
});
const css = rgb => `rgb(${rgb.join()})`;

/** Colours an element by a share from 0 to 1. */
function tint(target, share, pair) {
  target.style.background = css(mix(pair, share));
  target.classList.toggle('dark-cell', share > 0.55);
}

const headName = () => state.kind === 'rollout' ? `the roll-out up to layer ${state.layer}`
  : state.head === 'mean' ? `the mean of layer ${state.layer}` : `head ${state.layer}.${state.head}`;

/** What the chosen word gives to each word. */
function rowOfWord() {
  const { n, values } = matrixOf({ ...state, tokens: false });
  return Array.from(values.subarray(state.word * n, (state.word + 1) * n));
}

function bar(name, value, max, text) {
  const fill = element('span');
  fill.style.width = `${max > 0 ? 100 * value / max : 0}%`;
  return element('li', {}, name, element('span', { className: 'bar' }, fill),
    element('span', { className: 'number', textContent: text }));
}

function drawWords() {
  const row = rowOfWord(), max = Math.max(...row), pair = colours();
  [...$('words').children].forEach((button, index) => {
    const chosen = index === state.word;
    button.setAttribute('aria-pressed', chosen);
    button.tabIndex = chosen ? 0 : -1;
    button.title = `${NAMES[index]}: ${numberOf(row[index], state)}`;
    tint(button, shade(row[index], max, state.log), pair);
  });
  const box = $('words'), at = box.children[state.word].offsetTop - box.offsetTop;
  if (at < box.scrollTop || at > box.scrollTop + box.clientHeight - 40) box.scrollTop = at - box.clientHeight / 2;
  document.querySelectorAll('.chosen').forEach(place => { place.textContent = NAMES[state.word]; });
  const order = row.map((value, index) => [value, index]).filter(([value]) => value > 0).sort((a, b) => b[0] - a[0]);
  $('ranking').replaceChildren(...order.slice(0, 8).map(([value, index]) =>
    bar(element('span', { className: 'name', textContent: NAMES[index] }), value, order[0][0], numberOf(value, state))));
  drawArcs(row, max);
  drawLinks();
}

/** The heads with the largest weight from the chosen word to the other one. */
function drawLinks() {
  const valued = state.kind === 'value', found = [];
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      found.push([link(mapOf(layer, head), valued, state.skip, state.word, state.target), layer, head]);
    }
  }
  found.sort((a, b) => b[0] - a[0]);
  $('links').replaceChildren(...found.slice(0, 8).filter(([value]) => value > 0).map(([value, layer, head]) => {
    const name = element('button', { type: 'button', textContent: `${layer}.${head}`, title: `Show head ${layer}.${head}` });
    name.onclick = () => choose({ layer, head, kind: state.kind === 'rollout' ? 'weights' : state.kind });
    return bar(name, value, found[0][0], numberOf(value, { kind: state.kind === 'value' ? 'value' : 'weights' }));
  }));
  if (!$('links').children.length) $('links').append(element('li', { textContent: 'none' }));
}

/** Arcs over a window of words around the chosen one. */
function drawArcs(row, max) {
  const from = Math.max(0, state.word - 40), to = Math.min(W, Math.max(from + 48, state.word + 8));
  const svg = $('arcs'), draw = (tag, attributes) => {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
    return made;
  };
  svg.replaceChildren();
  const middle = [];
  let x = 12;
  for (let index = from; index < to; index++) {
    const width = 8.5 * [...D.words[index].text].length + 14;
    middle.push(x + width / 2);
    x += width;
  }
  const here = middle[state.word - from];
  const arcs = [];
  for (let index = from; index < to; index++) {
    const part = shade(row[index], max, state.log);
    if (index !== state.word && part > 0.02) arcs.push([index, part]);
  }
  const far = Math.max(60, ...arcs.map(([index]) => Math.abs(here - middle[index - from])));
  const height = Math.min(170, far / 2.2) + 16;
  svg.setAttribute('width', x + 12);
  svg.setAttribute('height', height + 28);
  for (const [index, part] of arcs) {
    const there = middle[index - from], up = Math.min(height * 1.25, Math.abs(here - there) / 1.7 + 14);
    draw('path', { d: `M${here} ${height} C${here} ${height - up} ${there} ${height - up} ${there} ${height}`,
      'stroke-width': 1 + 7 * part, 'stroke-opacity': 0.25 + 0.75 * part });
  }
  for (let index = from; index < to; index++) {
    const text = draw('text', { x: middle[index - from], y: height + 20 });
    text.textContent = D.words[index].text;
    if (index === state.word) text.setAttribute('class', 'on');
  }
  const box = $('arcs-box');
  box.scrollLeft = Math.max(0, here - box.clientWidth * 0.7);
}

const LABELS = 48; // a map of more words has no labels
let geometry = null;
function drawMap() {
  const { n, values, max } = matrixOf(state), canvas = $('map'), ratio = Math.min(3, window.devicePixelRatio || 1);
  const labelled = n <= LABELS, width = Math.min(760, $('map').parentElement.clientWidth);
  const style = getComputedStyle(document.body), longest = labelled
    ? Math.max(...Array.from({ length: n }, (_, i) => [...nameOf(i, state.tokens)].length)) : 0;
  const margin = labelled ? Math.min(110, 8 + 7 * longest) : 0;
  // A map with more cells than pixels shows the largest weight of the cells in each pixel.
  const size = Math.max(15, Math.min(44, Math.floor((width - margin) / n)));
  const side = labelled ? margin + size * n : Math.max(200, width);
  const cell = (side - margin) / n, dots = labelled ? n : Math.min(n, Math.round(side * ratio));
  geometry = { margin, cell, n };
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.width = canvas.height = Math.round(side * ratio);
  const context = canvas.getContext('2d'), pair = colours();
  context.scale(ratio, ratio);
  const image = new ImageData(dots, dots), pixels = new Uint32Array(image.data.buffer), table = palette(pair);
  const parts = dots === n ? values : pooled(values, n, dots);
  for (let row = 0; row < dots; row++) {
    for (let i = row * dots; i <= row * dots + row; i++) {
      pixels[i] = table[Math.round(255 * shade(parts[i], max, state.log))];
    }
  }
  const small = new OffscreenCanvas(dots, dots);
  small.getContext('2d').putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, margin, margin, n * cell, n * cell);
  if (labelled) {
    context.fillStyle = style.color;
    context.font = `${Math.min(13, cell - 2)}px system-ui, sans-serif`;
    for (let i = 0; i < n; i++) {
      const name = [...nameOf(i, state.tokens)], text = name.length > 14 ? `${name.slice(0, 13).join('')}…` : name.join('');
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      context.fillText(text, margin - 4, margin + (i + 0.5) * cell);
      context.save();
      context.translate(margin + (i + 0.5) * cell, margin - 4);
      context.rotate(-Math.PI / 2);
      context.textAlign = 'left';
      context.fillText(text, 0, 0);
      context.restore();
    }
  }
  if (state.cell) {
    context.strokeStyle = css(pair[1].map(value => 255 - value));
    context.lineWidth = 2;
    context.strokeRect(margin + state.cell[1] * cell, margin + state.cell[0] * cell, Math.max(3, cell), Math.max(3, cell));
  }
  $('map-name').textContent = headName();
}

/** The largest of the n by n values in each of p by p parts. */
function pooled(values, n, p) {
  const parts = new Float32Array(p * p);
  for (let row = 0; row < n; row++) {
    const start = Math.floor(row * p / n) * p;
    for (let column = 0; column <= row; column++) {
      const value = values[row * n + column], at = start + Math.floor(column * p / n);
      if (value > parts[at]) parts[at] = value;
    }
  }
  return parts;
}

function readCell(row, column) {
  const { n, values } = matrixOf(state);
  const name = index => `“${nameOf(index, state.tokens)}”`;
  $('cell').textContent = column > row ? `${name(row)} cannot see ${name(column)}, which comes later`
    : `${name(row)} → ${name(column)}: ${numberOf(values[row * n + column], state)}`;
}

/** A small picture of a map: the largest weight in each of p by p parts. */
function thumbnail(canvas, map, valued, pair) {
  const p = Math.min(T, 32), parts = new Float32Array(p * p);
  eachWeight(map, valued, state.skip, (query, key, weight) => {
    const at = Math.floor(query * p / T) * p + Math.floor(key * p / T);
    if (weight > parts[at]) parts[at] = weight;
  });
  const max = parts.reduce((a, b) => Math.max(a, b), 0);
  canvas.width = canvas.height = p;
  const image = new ImageData(p, p);
  const pixels = new Uint32Array(image.data.buffer), table = palette(pair);
  parts.forEach((value, i) => { pixels[i] = table[Math.round(255 * shade(value, max, state.log))]; });
  canvas.getContext('2d').putImageData(image, 0, 0);
}
