// Panes for what is no conversation: filling gaps, comparing texts, and texts out of texts.

import { post, stream } from './api.js';
import { $, copyButton, h, icon, mark, tool } from './dom.js';
import { choose } from './models.js';
import { state } from './state.js';
import { settings } from './store.js';

const can = (one, task, otherwise) => one.tasks?.includes(task) ?? otherwise;
const KINDS = {
  fill: { fits: one => can(one, 'fill', one.structure === 'encoder'), none: 'No model here fills gaps. Serve an encoder beside the others, such as BERT or RoBERTa.', draw: drawFill },
  embed: { fits: one => can(one, 'embed', true), none: 'No model here gives vectors of texts.', draw: drawEmbed },
  write: { fits: one => can(one, 'write', one.structure === 'encoder-decoder'), none: 'No model here turns one text into another. Serve an encoder-decoder, such as T5 or BART.', draw: drawWrite },
};
const kept = {}; // what stands in each pane while others are shown
let stopping = null;

/** Show a pane with a model of this name, or with the one used last. */
export function showPane(name, wanted = '') {
  stopping?.abort();
  const { fits, none, draw } = KINDS[name], known = state.models.filter(fits);
  const memo = kept[name] ??= { model: settings.get(`${name}.model`, ''), text: settings.get(`${name}.text`, EXAMPLES[name]) };
  if (wanted) memo.model = wanted;
  const structures = { fill: 'encoder', embed: 'encoder', write: 'encoder-decoder' };
  const chosen = known.find(one => one.id === memo.model) ?? known.find(one => one.structure === structures[name]) ?? known[0];
  if (!chosen) { $('#pane').replaceChildren(h('div', { class: 'sheet' }, h('p', { class: 'lede' }, state.trouble || none))); return; }
  memo.model = chosen.id;
  settings.set(`${name}.model`, chosen.id);
  const pickModel = h('button', { type: 'button', class: 'chip single', onclick: async () => {
    const one = await choose({ now: memo.model, fits, otherwise: 'not for this' });
    if (one && fits(one)) showPane(name, one.id);
  } }, mark(chosen.structure), h('span', { class: 'name' }, chosen.id), icon('down'));
  const area = h('textarea', { rows: name === 'embed' ? 6 : 4, value: memo.text, dir: 'auto', 'aria-label': LABELS[name], oninput: () => { memo.text = area.value; settings.set(`${name}.text`, area.value); } });
  const out = h('div', { class: 'out', 'aria-live': 'polite' });
  const button = h('button', { type: 'submit', class: 'main' }, VERBS[name]);
  const form = h('form', { class: 'sheet' }, h('p', { class: 'lede' }, LEDES[name]), h('div', { class: 'row' }, pickModel), area);
  const tools = h('div', { class: 'row' }, button);
  const work = draw({ form, tools, area, out, memo });
  tools.append(h('span', { class: 'hint keys' }, h('kbd', {}, 'Ctrl'), ' ', h('kbd', {}, 'Enter')));
  form.append(tools, out);
  const go = async () => {
    if (stopping) { stopping.abort(); return; }
    const now = stopping = new AbortController();
    button.textContent = 'Stop';
    out.setAttribute('aria-busy', 'true');
    try { await work(now.signal); } catch (error) {
      if (error.name !== 'AbortError') out.replaceChildren(h('p', { class: 'error', role: 'alert' }, error.message));
    }
    if (stopping === now) stopping = null;
    button.textContent = VERBS[name];
    out.removeAttribute('aria-busy');
  };
  form.addEventListener('submit', event => { event.preventDefault(); go(); });
  area.addEventListener('keydown', event => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(); } });
  $('#pane').replaceChildren(form);
}

const EXAMPLES = {
  fill: 'The capital of France is [MASK].',
  embed: 'The king sat on his throne.\nThe queen wore a crown.\nRain fell on the hills.\nA storm came over the mountains.',
  write: 'translate English to German: The house is wonderful.',
};
const LABELS = { fill: 'A text with gaps', embed: 'Texts, one a line', write: 'The text' };
const VERBS = { fill: 'Fill', embed: 'Compare', write: 'Write' };
const LEDES = {
  fill: 'A text with gaps, written [MASK]: the model says what could stand in each.',
  embed: 'Texts, one a line: each becomes a vector, and the table shows how close they are.',
  write: 'A text in, a text out: translated, summed up or answered, as the model was trained to.',
};

function drawFill({ tools, area, out, memo }) {
  const gap = h('button', { type: 'button', onclick: () => { area.setRangeText('[MASK]', area.selectionStart, area.selectionEnd, 'end'); area.dispatchEvent(new Event('input')); area.focus(); } }, icon('plus'), 'A gap');
  tools.append(gap);
  return async signal => {
    const { text, guesses = [], spans = [] } = await post('fill', { model: memo.model, text: area.value, top: 5 }, signal);
    const lists = guesses.map((list, i) => h('section', { class: 'gap' }, h('h2', {}, guesses.length > 1 ? `Gap ${i + 1}` : 'The gap'),
      h('ol', {}, ...list.map(guess => bar(guess.text, guess.probability)))));
    const written = spans.map((span, i) => h('section', { class: 'gap' }, h('h2', {}, `Gap ${i + 1}`), h('p', {}, span)));
    out.replaceChildren(h('p', { class: 'result', dir: 'auto' }, text, copyButton(() => text)), h('div', { class: 'gaps' }, ...lists, ...written));
  };
}

function bar(text, share) {
  const line = h('span', { class: 'bar' });
  line.style.setProperty('--share', `${share * 100}%`);
  return h('li', {}, line, h('code', {}, text), h('span', { class: 'n' }, `${(share * 100).toFixed(1)} %`));
}

const cosine = (a, b) => {
  let dot = 0, one = 0, two = 0;
  for (let i = 0; i < a.length; i += 1) { dot += a[i] * b[i]; one += a[i] * a[i]; two += b[i] * b[i]; }
  return dot / (Math.sqrt(one * two) || 1);
};

function drawEmbed({ area, out, memo }) {
  return async signal => {
    const lines = area.value.split('\n').map(line => line.trim()).filter(Boolean);
    if (lines.length < 2) throw new Error('Two lines at least are compared.');
    if (lines.length > 50) throw new Error(`At most 50 lines are compared, not ${lines.length}.`);
    const { data } = await post('v1/embeddings', { model: memo.model, input: lines }, signal);
    const vectors = data.sort((a, b) => a.index - b.index).map(entry => entry.embedding);
    const all = vectors.map(a => vectors.map(b => cosine(a, b)));
    const off = all.flatMap((row, i) => row.filter((_, j) => j !== i)), low = Math.min(...off), high = Math.max(...off);
    const cell = (value, i, j) => {
      const box = h('td', { title: `${lines[i]}\n${lines[j]}` }, i === j ? '' : value.toFixed(2));
      box.style.setProperty('--near', `${i === j ? 0 : Math.round(6 + 50 * (value - low) / (high - low || 1))}%`);
      return box;
    };
    const head = h('tr', {}, h('td'), ...lines.map((_, i) => h('th', { scope: 'col' }, String(i + 1))));
    out.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Similarities' },
      h('table', { class: 'near' }, head, ...all.map((row, i) => h('tr', {}, h('th', { scope: 'row', dir: 'auto' }, h('span', {}, `${i + 1}`), lines[i]), ...row.map((value, j) => cell(value, i, j)))))),
    h('p', { class: 'hint' }, `Cosines of vectors of ${vectors[0].length} numbers; the closest pair is darkest.`));
  };
}

function drawWrite({ form, area, out, memo }) {
  const language = h('input', { id: 'language', placeholder: 'as the model has it', value: memo.language ?? '', oninput: () => { memo.language = language.value; } });
  const length = h('input', { id: 'length', type: 'number', min: 1, value: memo.length ?? 128, oninput: () => { memo.length = length.value; } });
  form.append(h('div', { class: 'row fields' }, h('label', { for: 'language' }, 'Language to write'), language, h('label', { for: 'length' }, 'Most tokens'), length));
  return async signal => {
    let text = '';
    const shown = h('span'), line = h('p', { class: 'result', dir: 'auto' }, shown, copyButton(() => text));
    out.replaceChildren(line);
    const body = { model: memo.model, prompt: area.value, max_tokens: Number(length.value) || 128, ...(language.value.trim() ? { language: language.value.trim() } : {}) };
    for await (const chunk of stream('v1/completions', body, signal)) {
      text += chunk.choices?.[0]?.text ?? '';
      shown.textContent = text;
    }
    if (!text.trim()) shown.textContent = 'The model wrote nothing.';
  };
}
