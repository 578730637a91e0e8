// The bar above a conversation: its models, and the switches of the view.

import { server } from './api.js';
import { $, h, icon, mark, toast, tool } from './dom.js';
import { choose } from './models.js';
import * as reply from './reply.js';
import { model, on, state, tell, writers } from './state.js';
import * as store from './store.js';
import * as thread from './thread.js';

export const MOST = 3; // models side by side

const titleOf = { chat: null, fill: 'Fill', embed: 'Embed', write: 'Write and translate' };

export function startBar(side) {
  for (const name of ['conv', 'models', 'pane', 'tokens', 'optioned']) on(name, () => draw(side));
}

function draw(side) {
  const menu = tool('menu', 'Conversations (Ctrl+B)', side.toggle, { class: 'tool menu' });
  if (state.pane && state.pane !== 'chat') {
    $('#bar').replaceChildren(menu, h('h1', {}, titleOf[state.pane]));
    return;
  }
  const models = state.conv?.models ?? [];
  const chips = models.map((name, i) => chip(name, i, models.length > 1));
  const more = models.length && models.length < MOST && (writers().length > 1 || server.feedback)
    ? h('button', { type: 'button', class: 'beside', title: 'Ask another model the same (Ctrl+Shift+K)', onclick: beside }, icon('plus'), h('span', {}, 'Side by side')) : null;
  const none = models.length ? null : h('button', { type: 'button', class: 'chip', onclick: () => pick(0) }, 'Choose a model', icon('down'));
  const shown = labelled('Probabilities', 'tokens', 'Show probabilities of tokens (Ctrl+Shift+L)', toggleTokens, { 'aria-pressed': String(state.tokens) });
  const options = labelled('Settings', 'sliders', 'Settings of this conversation (Ctrl+,)', () => tell('options'), { 'aria-expanded': String(!$('#options').hidden), 'aria-controls': 'options' });
  $('#bar').replaceChildren(menu, h('div', { class: 'chips', role: 'group', 'aria-label': 'Models' }, none, ...chips, more), shown, options);
}

/** A tool with its name beside it, where there is room. */
function labelled(text, ...rest) {
  const button = tool(...rest);
  button.append(h('span', {}, text));
  return button;
}

function chip(name, i, several) {
  const known = model(name);
  return h('span', { class: `chip${known ? '' : ' lost'}` },
    h('button', { type: 'button', title: known ? `Choose another model (Ctrl+K)` : 'This model is not served now', onclick: () => pick(i) },
      mark(known?.structure), h('span', { class: 'name' }, name), icon('down')),
    several ? tool('close', `Leave out ${name}`, () => set(state.conv.models.filter((_, at) => at !== i))) : null);
}

export async function pick(i = 0) {
  const chosen = await choose({ title: 'Choose a model', now: state.conv.models[i], fits: one => one.writes, otherwise: 'fills and embeds' });
  if (!chosen) return;
  if (!chosen.writes) { tell('go', `#/fill/${encodeURIComponent(chosen.id)}`); return; }
  const models = [...state.conv.models];
  if (models.includes(chosen.id) && models[i] !== chosen.id) { toast(`${chosen.id} is already one of the columns.`); return; }
  models[i] = chosen.id;
  set(models);
}

export async function beside() {
  if (state.conv.models.length >= MOST) { toast(`At most ${MOST} models stand side by side.`); return; }
  const { models } = state.conv;
  const fits = one => one.writes && (server.feedback || !models.includes(one.id)); // to compare, a model answers twice
  const chosen = await choose({ title: server.feedback ? 'Ask a model the same' : 'Ask another model the same', fits, otherwise: 'not for this' });
  if (chosen && fits(chosen)) set([...models, chosen.id]);
}

/** Put a model that has just come beside the others of the conversation. */
export function together(name) {
  const { models } = state.conv;
  if (!models.includes(name) && models.length < MOST) set([...models, name]);
}

function set(models) {
  state.conv.models = models;
  store.settings.set('models', models);
  if (thread.path(state.conv).length) reply.keep(state.conv);
  tell('conv', state.conv);
  tell('models');
}

export function toggleTokens() {
  state.tokens = !state.tokens;
  store.settings.set('tokens', state.tokens);
  if (state.tokens && thread.path(state.conv).length) toast('Answers from now on come with the probabilities of their tokens.', null, 4);
  tell('tokens');
}
