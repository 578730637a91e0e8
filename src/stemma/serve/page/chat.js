// The conversation that is open: what is done to it, and how it is drawn.

import * as feedback from './feedback.js';
import { $, framed, h, icon, mark, say, toast } from './dom.js';
import { round, userMessage } from './message.js';
import * as reply from './reply.js';
import { model, on, state, tell, usual, usualSettings } from './state.js';
import * as store from './store.js';
import * as thread from './thread.js';
import { hide } from './tokens.js';

const views = new WeakMap(); // of the parts that stand on the page
const drawn = new Map(); // elements of messages, by what they depend on: {id: [key, element, node]}
let stuck = true; // whether the end of the conversation stays in sight

// ---- what is done

export async function open(id) {
  const conv = reply.live(id) ?? await store.get(id);
  if (!conv) { fresh(); return false; }
  show(conv);
  return true;
}

/** A conversation that is kept once something is said in it. */
export function fresh() {
  show(thread.begin(usual(), usualSettings()));
}

export function show(conv) {
  if (conv !== state.conv) stuck = true;
  state.conv = conv;
  draw();
  tell('conv', conv);
}

export function send(text) {
  const { conv } = state;
  if (!conv.models.length) { toast('No model is chosen: no model of this server writes text.'); return false; }
  if (reply.busy(conv)) return false;
  stuck = true;
  go(thread.answer(conv, thread.ask(conv, text).id));
  return true;
}

/** Draw a new round and have it written. */
function go(node) {
  const { conv } = state;
  draw();
  tell('conv', conv);
  reply.run(conv, node).then(() => {
    const failed = node.parts.find(part => part.state === 'failed');
    say(failed ? failed.error : 'The answer is complete.');
  });
}

function idle() {
  if (!reply.busy(state.conv)) return true;
  toast('An answer is being written: stop it first (Esc).');
  return false;
}

const acts = {
  reask(node, text) { if (idle()) { stuck = true; go(thread.answer(state.conv, thread.ask(state.conv, text, node.parent).id)); } },
  retry(node, index) { this.replace(node, index, thread.blank(retried(node, index))); },
  further(node, index) { this.replace(node, index, reply.further(node.parts[index])); },
  branch(node, index, upto, next) {
    if (!reply.goesOn(node.parts[index].model)) { toast('An encoder-decoder begins its own answer; it cannot go on from another.'); return; }
    this.replace(node, index, reply.onward(node.parts[index], upto, next));
  },
  replace(node, index, part) { if (idle()) go(thread.instead(state.conv, node, index, part)); },
  rewrite(node, index, text) {
    if (!idle()) return;
    feedback.edited(state.conv, node, index, text);
    thread.instead(state.conv, node, index, { model: node.parts[index].model, text, state: 'done' });
    changed();
  },
  walk(node, by) { thread.walk(state.conv, node, by); changed(); },
  stop(part) { reply.stop(state.conv, part); },
};

/** A single column goes on with the model that is chosen now, several with their own. */
function retried(node, index) {
  const { models } = state.conv;
  return node.parts.length === 1 && models.length === 1 ? models[0] : node.parts[index].model;
}

function changed() {
  reply.keep(state.conv);
  draw();
}

/** Edit the last thing the user said. */
export function editLast() {
  const last = [...document.querySelectorAll('#talk .user')].at(-1);
  last?.edit();
  return Boolean(last);
}

export function retryLast() {
  const node = thread.path(state.conv).at(-1);
  if (node?.role === 'assistant') acts.retry(node, 0);
}

// ---- how it is drawn

function draw() {
  const { conv } = state, at = document.activeElement?.dataset?.at;
  hide();
  const nodes = thread.path(conv);
  const wide = Math.max(1, ...nodes.map(node => node.parts?.length ?? 1));
  const talk = $('#talk');
  talk.dataset.columns = wide;
  const after = thread.followers(conv);
  const now = nodes.length ? nodes.map(node => element(node, after.get(node.parent))) : [welcome()];
  now.forEach((one, i) => { if (talk.children[i] !== one) talk.insertBefore(one, talk.children[i] ?? null); });
  while (talk.childElementCount > now.length) talk.lastElementChild.remove();
  for (const [id, [, one]] of drawn) if (!one.isConnected) drawn.delete(id);
  if (at) document.querySelector(`[data-at="${CSS.escape(at)}"]:not([disabled])`)?.focus({ preventScroll: true });
  follow();
}

/** The element of a message; one that is drawn already stays, so that a long conversation costs what is new in it. */
function element(node, all) {
  const key = [all.length, all.indexOf(node), state.tokens, state.models.length].join();
  const [old, one, of] = drawn.get(node.id) ?? [];
  if (old === key && of === node) return one;
  const made = node.role === 'user' ? userMessage(state.conv, node, acts) : round(state.conv, node, acts, views);
  drawn.set(node.id, [key, made, node]);
  return made;
}

const BEGINNINGS = {
  chat: ['What is a family tree of manuscripts?', 'Write a short poem about rivers.', 'Explain recursion to a child.', 'Reverse a list in Python.'],
  text: ['Once upon a time', 'The king said to his servants:', 'def fibonacci(n):', 'The most important discovery of the century was'],
  source: ['translate English to German: The house is wonderful.', 'summarize: The tower is 324 metres tall, about the same height as an 81-storey building.'],
};
const HEADS = { chat: 'What shall we talk about?', text: 'Begin a text, and it goes on', source: 'Give a text, and it is answered' };

/** What stands in an empty conversation: the line of the model's family, and things to begin with. */
function welcome() {
  const [name] = state.conv.models;
  if (!name) return h('div', { class: 'welcome' }, h('h1', {}, state.trouble ? 'No connection' : 'No model here writes text'), h('p', {}, state.trouble || 'Choose Fill or Embed at the side.'));
  const how = reply.manner(name);
  return h('div', { class: 'welcome' },
    lineage(name),
    h('h1', {}, HEADS[how]),
    h('ul', { class: 'beginnings' }, ...BEGINNINGS[how].map(text => h('li', {}, h('button', { type: 'button', onclick: () => tell('draft', text) }, text, icon('forward'))))));
}

function lineage(name) {
  const known = model(name), line = known?.lineage ?? [];
  if (!line.length) return null;
  const steps = line.map((family, i) => h('li', { class: i === line.length - 1 ? 'own' : null }, family));
  return h('ol', { class: `lineage ${known.structure}`, 'aria-label': `Lineage of ${name}` }, ...steps,
    h('li', { class: 'leaf' }, mark(known.structure), name));
}

// ---- the end in sight

function follow() {
  const box = $('#thread');
  if (stuck) box.scrollTop = box.scrollHeight;
  $('#latest').hidden = stuck;
}

export function startChat() {
  const box = $('#thread'), waiting = new Set();
  const flush = framed(() => {
    for (const part of waiting) views.get(part)?.update();
    waiting.clear();
    follow();
  });
  on('part', (conv, node, index) => {
    if (conv !== state.conv) return;
    waiting.add(node.parts[index]);
    flush();
  });
  on('tokens', draw);
  on('models', () => { if (state.conv && !thread.path(state.conv).length) draw(); });
  box.addEventListener('scroll', () => {
    stuck = box.scrollHeight - box.scrollTop - box.clientHeight < 48;
    $('#latest').hidden = stuck;
  }, { passive: true });
  $('#latest').prepend(icon('down'));
  $('#latest').addEventListener('click', () => { stuck = true; follow(); });
  new ResizeObserver(follow).observe(box);
}
