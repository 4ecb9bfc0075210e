// The controls of the page.
function makeGrid() {
  const rows = Array.from({ length: L }, (_, layer) => {
    const title = element('div', { textContent: `Layer ${layer} ` });
    title.setAttribute('role', 'rowheader');
    if (D.lazy[layer]) {
      title.append(element('span', { className: 'lazy', textContent: 'lazy', title: `${share(D.first[layer])} on the first token` }));
    }
    const heads = Array.from({ length: H }, (_, head) => {
      const button = element('button', { type: 'button', title: `${layer}.${head}` }, element('canvas'));
      button.setAttribute('role', 'gridcell');
      button.setAttribute('aria-label', `Head ${layer}.${head}`);
      button.onclick = () => choose({ layer, head, kind: state.kind === 'rollout' ? 'weights' : state.kind });
      return button;
    });
    const row = element('div', { className: 'row' }, title, ...heads);
    row.setAttribute('role', 'row');
    return row;
  });
  $('grid').replaceChildren(...rows);
}

const gridButton = (layer, head) => $('grid').children[layer].children[head + 1];
let drawn = '';
function drawGrid() {
  const current = [state.kind === 'value', state.skip, state.log, document.documentElement.dataset.theme, dark.matches].join();
  const pair = colours(), [at, of] = [state.layer, state.head === 'mean' ? 0 : state.head];
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      const button = gridButton(layer, head);
      if (current !== drawn) thumbnail(button.firstChild, mapOf(layer, head), state.kind === 'value', pair);
      button.setAttribute('aria-pressed', layer === at && head === state.head && state.kind !== 'rollout');
      button.tabIndex = layer === at && head === of ? 0 : -1;
    }
  }
  drawn = current;
}

const COLUMNS = ['Head', 'previous', 'duplicate', 'induction', 'first token'];
function drawScores() {
  $('scores').tHead.replaceChildren(element('tr', {}, ...COLUMNS.map((name, column) => {
    const cell = element('th', { scope: 'col' });
    const button = element('button', { type: 'button', textContent: state.sort === column ? `${name} ▾` : name });
    button.onclick = () => { state.sort = column; drawScores(); };
    cell.setAttribute('aria-sort', state.sort !== column ? 'none' : column ? 'descending' : 'ascending');
    cell.append(button);
    return cell;
  })));
  const pair = colours(), scores = state.random ? D.random_scores : D.scores;
  const order = scores.map((row, index) => [index, row]);
  if (state.sort) order.sort((a, b) => b[1][state.sort - 1] - a[1][state.sort - 1] || a[0] - b[0]);
  $('scores').tBodies[0].replaceChildren(...order.map(([index, row]) => {
    const [layer, head] = [Math.floor(index / H), index % H];
    const button = element('button', { type: 'button', textContent: `${layer}.${head}` });
    button.onclick = () => choose({ layer, head, kind: state.kind === 'rollout' ? 'weights' : state.kind });
    const line = element('tr', {}, element('td', {}, button), ...row.map(value => {
      const cell = element('td', { textContent: share(value) });
      tint(cell, value, pair);
      return cell;
    }));
    line.setAttribute('aria-selected', layer === state.layer && head === state.head);
    return line;
  }));
}

function drawAblation() {
  if (!D.ablation && !D.effects) return;
  $('ablation').hidden = false;
  const body = $('ablation-body'), pair = colours();
  body.replaceChildren();
  if (D.ablation) {
    const { title, kl, changes } = D.ablation, most = Math.max(...kl, 1e-12);
    body.append(element('p', { textContent: `${title}. KL is KL(before ‖ after) of the next token, in nats.` }));
    for (const change of changes) {
      const table = element('table', {}, element('caption', { textContent: `After “${change.after}”: KL ${change.kl.toPrecision(3)}` }),
        element('thead', {}, element('tr', {}, ...['next token', 'before', 'after'].map(text => element('th', { scope: 'col', textContent: text })))),
        element('tbody', {}, ...change.tokens.map(([text, ...values]) => element('tr', {}, element('td', { textContent: text }),
          ...values.map(value => {
            const cell = element('td', { textContent: share(value) });
            tint(cell, value, pair);
            return cell;
          })))));
      body.append(element('div', { className: 'scroll' }, table));
    }
    body.append(element('h3', { textContent: 'Where the predictions change' }), element('p', { className: 'kl' },
      ...D.tokens.map((text, index) => {
        const part = element('span', { textContent: text, title: `KL ${kl[index].toPrecision(3)}` });
        tint(part, kl[index] / most, pair);
        return part;
      })));
  }
  if (D.effects) {
    body.append(element('h3', { textContent: `Each head alone: KL of the token after “${D.effects.after}”` }),
      element('ol', { className: 'bars' }, ...D.effects.heads.slice(0, 16).map(([layer, head, kl]) => {
        const name = element('button', { type: 'button', textContent: `${layer}.${head}` });
        name.onclick = () => choose({ layer, head, kind: 'weights' });
        return bar(name, kl, D.effects.heads[0][2], kl.toPrecision(2));
      })));
  }
}

function draw() {
  $('layer').value = state.layer;
  $('head').value = state.head;
  $('kind').value = state.kind;
  $('head').disabled = state.kind === 'rollout';
  for (const name of ['log', 'skip', 'tokens', 'random']) $(name).checked = state[name];
  drawWords();
  drawMap();
  drawGrid();
  drawScores();
}

/** Changes the state and draws it. */
function choose(change) {
  Object.assign(state, change);
  if ('tokens' in change) state.cell = null;
  draw();
}

/** Moves by the arrow keys: calls move(down, right), and returns without if it is another key. */
function arrows(event, move) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  move(...step);
}
const within = (value, end) => Math.max(0, Math.min(end - 1, value));

const dark = matchMedia('(prefers-color-scheme: dark)');
function start() {
  document.title = `Attention: ${D.model}`;
  $('about').textContent = `${D.model}: ${L} layers of ${H} heads, ${T} tokens, ${W} words`;
  if (D.keep) $('note').textContent = `The text is long: each token has its ${D.keep} largest weights of each head.`;
  const options = (select, list) => select.replaceChildren(...list.map(([value, text]) => element('option', { value, textContent: text })));
  options($('layer'), Array.from({ length: L }, (_, i) => [i, D.lazy[i] ? `${i} (lazy)` : i]));
  options($('head'), [['mean', 'mean'], ...Array.from({ length: H }, (_, i) => [i, i])]);
  options($('target'), NAMES.map((name, index) => [index, name]));
  $('target').value = state.target;
  $('layer').onchange = event => choose({ layer: Number(event.target.value) });
  $('head').onchange = event => choose({ head: event.target.value === 'mean' ? 'mean' : Number(event.target.value) });
  $('kind').onchange = event => choose({ kind: event.target.value });
  $('target').onchange = event => choose({ target: Number(event.target.value) });
  for (const name of ['log', 'skip', 'tokens', 'random']) $(name).onchange = event => choose({ [name]: event.target.checked });
  $('controls').onsubmit = event => event.preventDefault();
  $('words').replaceChildren(...D.words.map(({ text }, index) => {
    const button = element('button', { type: 'button', textContent: text });
    button.onclick = () => choose({ word: index });
    return button;
  }));
  $('words').onkeydown = event => arrows(event, (down, right) => {
    choose({ word: within(state.word + down + right, W) });
    $('words').children[state.word].focus();
  });
  makeGrid();
  $('grid').onkeydown = event => arrows(event, (down, right) => {
    const [layer, head] = [within(state.layer + down, L), within((state.head === 'mean' ? 0 : state.head) + right, H)];
    choose({ layer, head, kind: state.kind === 'rollout' ? 'weights' : state.kind });
    gridButton(layer, head).focus();
  });
  $('map').onkeydown = event => arrows(event, (down, right) => {
    const n = state.tokens ? T : W, [row, column] = state.cell || [state.tokens ? 0 : state.word, 0];
    state.cell = [within(row + down, n), within(column + right, n)];
    readCell(...state.cell);
    drawMap();
  });
  $('map').onpointermove = $('map').onpointerdown = event => {
    const { margin, cell, n } = geometry, at = offset => Math.floor((offset - margin) / cell);
    const [row, column] = [at(event.offsetY), at(event.offsetX)];
    if (row >= 0 && column >= 0 && row < n && column < n) readCell(row, column);
  };
  const themes = { '': 'automatic', light: 'light', dark: 'dark' }, names = Object.keys(themes);
  $('theme').onclick = () => {
    const root = document.documentElement, next = names[(names.indexOf(root.dataset.theme || '') + 1) % 3];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    $('theme').textContent = `Theme: ${themes[next]}`;
    draw();
    drawAblation();
  };
  dark.onchange = () => { draw(); drawAblation(); };
  let timer = 0;
  window.onresize = () => { clearTimeout(timer); timer = setTimeout(draw, 100); };
  draw();
  drawAblation();
  document.documentElement.dataset.ready = 'yes';
}
start();
