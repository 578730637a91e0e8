// The settings of a conversation: what the model is told before all else, and how tokens are drawn.

import { $, h, tool } from './dom.js';
import * as reply from './reply.js';
import { on, PRESETS, state, tell } from './state.js';
import { settings } from './store.js';
import * as thread from './thread.js';

// name of the field, label, least, most, step, what it does; an empty field leaves the choice to the model
const FIELDS = [
  ['temperature', 'Temperature', 0, 2, 0.05, '0 takes the likeliest token always; higher is more varied'],
  ['top_p', 'Top-p', 0.01, 1, 0.01, 'draw among the likeliest tokens that hold this share together'],
  ['top_k', 'Top-k', 1, 200, 1, 'draw among this many of the likeliest tokens'],
  ['min_p', 'Min-p', 0, 1, 0.01, 'leave out what is less likely than this share of the likeliest'],
  ['max_tokens', 'Most tokens', 1, 4096, 1, 'the length of an answer'],
  ['seed', 'Seed', 0, 2 ** 31 - 1, 1, 'the same seed gives the same answer again'],
];
const UNSLID = new Set(['seed']); // no slider: any number is as good as another

export function startOptions() {
  on('options', toggle);
  on('conv', () => { if (!$('#options').hidden) draw(); });
  if (settings.get('options', false) && innerWidth > 1100) toggle();
}

export function toggle() {
  const box = $('#options');
  box.hidden = !box.hidden;
  document.body.classList.toggle('with-options', !box.hidden);
  if (innerWidth > 1100) settings.set('options', !box.hidden);
  if (!box.hidden && state.conv) draw();
  tell('optioned');
  if (!box.hidden && innerWidth <= 1100) box.querySelector('textarea')?.focus();
}

function keep() {
  const { conv } = state;
  settings.set('usual', { system: conv.system, params: conv.params });
  if (thread.path(conv).length) reply.keep(conv);
}

function draw() {
  const { conv } = state, told = conv.models.some(name => reply.manner(name) === 'chat');
  const system = h('textarea', { id: 'system', rows: 5, value: conv.system, dir: 'auto', placeholder: 'You are…', disabled: !told,
    oninput: event => { conv.system = event.target.value; keep(); } });
  $('#options').replaceChildren(
    h('header', {}, h('h2', {}, 'Settings'), tool('close', 'Close the settings', toggle)),
    h('div', { class: 'scroll' },
      h('label', { for: 'system' }, 'System prompt'),
      system,
      told ? null : h('p', { class: 'hint' }, 'This model was not trained to be told things; it goes on from the text alone.'),
      h('div', { class: 'presets', role: 'group', 'aria-label': 'Presets' }, ...Object.entries(PRESETS).map(preset)),
      ...FIELDS.map(field),
      stops()));
}

const DRAWING = ['temperature', 'top_p', 'top_k', 'min_p'];
const drawing = params => JSON.stringify(DRAWING.map(name => params[name] ?? null));

/** A button that sets how tokens are drawn, and nothing else. */
function preset([name, params]) {
  const { conv } = state;
  return h('button', { type: 'button', 'aria-pressed': String(drawing(params) === drawing(conv.params)), onclick: () => {
    for (const field of DRAWING) delete conv.params[field];
    Object.assign(conv.params, params);
    keep();
    draw();
    [...document.querySelectorAll('.presets button')].find(button => button.textContent === name).focus();
  } }, name);
}

function field([name, label, least, most, step, what]) {
  const { params } = state.conv;
  const number = h('input', { id: `o-${name}`, type: 'number', min: least, max: name === 'top_k' || name === 'max_tokens' ? null : most, step: name === 'temperature' ? 'any' : step,
    value: params[name] ?? '', placeholder: 'its own', inputmode: 'decimal', 'aria-describedby': `h-${name}` });
  const slider = UNSLID.has(name) ? null : h('input', { type: 'range', min: least, max: most, step, value: params[name] ?? least, 'aria-label': label, class: params[name] === undefined ? 'unset' : null });
  const set = value => {
    if (value === '' || !Number.isFinite(Number(value))) delete params[name]; else params[name] = Number(value);
    slider?.classList.toggle('unset', params[name] === undefined);
    document.querySelectorAll('.presets button').forEach((button, i) => button.setAttribute('aria-pressed', String(drawing(Object.values(PRESETS)[i]) === drawing(params))));
    keep();
  };
  number.addEventListener('input', () => {
    if (!number.reportValidity()) return;
    set(number.value);
    if (slider && number.value !== '') slider.value = number.value;
  });
  slider?.addEventListener('input', () => { number.value = slider.value; set(slider.value); });
  return h('div', { class: 'option-row' }, h('label', { for: `o-${name}` }, label), number, slider, h('p', { class: 'hint', id: `h-${name}` }, what));
}

function stops() {
  const { params } = state.conv;
  const area = h('textarea', { id: 'o-stop', rows: 2, placeholder: 'one a line; \\n is a new line', value: (params.stop ?? []).map(text => text.replaceAll('\n', '\\n')).join('\n'),
    oninput: () => {
      const list = area.value.split('\n').filter(Boolean).map(text => text.replaceAll('\\n', '\n')).slice(0, 4);
      if (list.length) params.stop = list; else delete params.stop;
      keep();
    } });
  return h('div', { class: 'option-row' }, h('label', { for: 'o-stop' }, 'Stop at'), area, h('p', { class: 'hint' }, 'texts that end an answer, four at most'));
}
