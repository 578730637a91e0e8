// The side: the panes, the conversations, and what concerns them all.

import { $, h, icon, toast, tool } from './dom.js';
import * as chat from './chat.js';
import * as exchange from './exchange.js';
import * as reply from './reply.js';
import { on, state, tell } from './state.js';
import * as store from './store.js';

const DAY = 24 * 3600 * 1000;
const PANES = [['fill', 'Fill'], ['embed', 'Embed'], ['write', 'Write']];
let words = '';
let inside = new Set(); // conversations that have the words in a message
let looking = 0;

export function startSide() {
  const search = h('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search conversations', oninput: () => { words = search.value.toLowerCase(); list(); lookInside(); } });
  $('#side').append(
    h('header', {}, h('a', { href: '#/', class: 'brand' }, h('img', { src: 'page/icon.svg', alt: '', width: 26, height: 26 }), 'Stemma'), tool('close', 'Close', close, { class: 'tool shut' })),
    h('a', { href: '#/', class: 'new', title: 'New conversation (Ctrl+Shift+O)' }, icon('plus'), 'New conversation'),
    h('ul', { class: 'panes' }, ...PANES.map(([name, label]) => h('li', {}, h('a', { href: `#/${name}`, 'data-pane': name }, icon(name), label)))),
    search,
    h('ul', { id: 'heads' }),
    h('footer', {}, themeButton(), tool('save', 'Save all conversations to a file', exchange.saveAll), tool('load', 'Bring in conversations from files', exchange.bringIn), tool('keys', 'Keys (Ctrl+/)', () => tell('keys'))));
  $('#veil').addEventListener('click', close);
  on('kept', refresh);
  on('busy', () => list());
  on('conv', () => list());
  on('pane', () => { close(); list(); });
  let told = false;
  on('unkept', () => {
    if (!told) toast('This conversation could not be kept: the browser has no room for it. Save it to a file.', ['Save', () => exchange.saveJson(state.conv)], 20);
    told = true;
  });
  store.onOther(async id => {
    await refresh();
    if (id === state.conv?.id && !reply.busy(state.conv) && await store.get(id)) chat.open(id);
  });
}

function themeButton() {
  const names = { '': 'as the system', light: 'light', dark: 'dark' };
  const label = () => `Colours: ${names[window.stemmaTheme.now()]}`;
  const button = tool('sun', label(), () => {
    window.stemmaTheme.next();
    for (const name of ['aria-label', 'title']) button.setAttribute(name, label());
    toast(label(), null, 2);
  }, { id: 'theme' });
  return button;
}

export async function refresh() {
  state.heads = await store.list();
  list();
}

const group = updated => {
  const today = new Date().setHours(0, 0, 0, 0);
  return updated >= today ? 'Today' : updated >= today - DAY ? 'Yesterday' : updated >= today - 7 * DAY ? 'This week' : 'Earlier';
};

/** Look for the words in all messages, a moment after the last letter was typed. */
function lookInside() {
  clearTimeout(looking);
  inside = new Set();
  if (words.trim().length < 3) return;
  const wanted = words.split(/\s+/);
  looking = setTimeout(async () => {
    const now = words, texts = conv => Object.values(conv.nodes).map(node => node.text ?? node.parts.map(part => part.text).join('\n')).join('\n').toLowerCase();
    const found = (await store.all()).filter(conv => { const text = texts(conv); return wanted.every(word => text.includes(word)); });
    if (now !== words) return;
    inside = new Set(found.map(conv => conv.id));
    list();
  }, 200);
}

const titled = head => words.split(/\s+/).every(word => `${head.title} ${head.models.join(' ')}`.toLowerCase().includes(word));

function list() {
  const rows = [];
  let last = '';
  for (const head of state.heads.filter(one => titled(one) || inside.has(one.id))) {
    const name = group(head.updated);
    if (name !== last) rows.push(h('li', { class: 'when' }, name));
    last = name;
    rows.push(row(head));
  }
  if (!rows.length) rows.push(h('li', { class: 'none' }, state.heads.length ? 'None has these words.' : 'Conversations are kept in this browser, and nowhere else.'));
  $('#heads').replaceChildren(...rows);
  for (const link of document.querySelectorAll('#side [data-pane]')) {
    if (link.dataset.pane === state.pane) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
}

function row(head) {
  const open = state.pane === 'chat' && head.id === state.conv?.id;
  const link = h('a', { href: `#/chat/${head.id}`, 'aria-current': open ? 'page' : null, dir: 'auto' }, head.title || 'Untitled');
  return h('li', { class: reply.live(head.id) ? 'writing' : null }, link, tool('more', `More about ${head.title}`, event => menu(event.currentTarget, head, link)));
}

function menu(button, head, link) {
  const item = (name, label, act) => h('button', { type: 'button', role: 'menuitem', onclick: () => { dismiss(); act(); } }, icon(name), label);
  const whole = async act => act(reply.live(head.id) ?? await store.get(head.id));
  const box = h('div', { class: 'popup', role: 'menu' },
    item('edit', 'Rename', () => rename(head, link)),
    item('save', 'Save as Markdown', () => whole(exchange.saveMarkdown)),
    item('save', 'Save as JSON', () => whole(exchange.saveJson)),
    item('trash', 'Delete', () => remove(head)));
  const dismiss = () => { box.remove(); removeEventListener('pointerdown', outside, true); };
  const outside = event => { if (!box.contains(event.target)) dismiss(); };
  addEventListener('pointerdown', outside, true);
  box.addEventListener('keydown', event => {
    const items = [...box.children], at = items.indexOf(document.activeElement);
    if (event.key === 'Escape') { event.stopPropagation(); dismiss(); button.focus(); }
    const to = { ArrowDown: items[(at + 1) % items.length], ArrowUp: items.at(at - 1) }[event.key];
    if (to) { event.preventDefault(); to.focus(); }
  });
  document.body.append(box);
  const at = button.getBoundingClientRect();
  box.style.left = `${Math.min(at.left, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(at.bottom + 4, innerHeight - box.offsetHeight - 8)}px`;
  box.firstElementChild.focus();
}

function rename(head, link) {
  const input = h('input', { value: head.title, 'aria-label': 'New name', maxlength: 200 });
  const done = async keep => {
    input.onblur = null;
    const conv = keep && input.value.trim() && (reply.live(head.id) ?? (state.conv?.id === head.id ? state.conv : await store.get(head.id)));
    if (conv) { conv.title = input.value.trim(); await store.put(conv); }
    refresh();
  };
  input.addEventListener('keydown', event => {
    if (event.key === 'Enter') done(true);
    if (event.key === 'Escape') { event.stopPropagation(); done(false); }
  });
  input.onblur = () => done(true);
  link.replaceWith(input);
  input.select();
}

async function remove(head) {
  const conv = reply.live(head.id) ?? await store.get(head.id);
  if (!conv) return;
  reply.stop(conv);
  await store.remove(head.id);
  await refresh();
  if (state.conv?.id === head.id) tell('go', '#/');
  toast(`“${head.title}” was deleted.`, ['Undo', async () => { await store.put(conv); await refresh(); tell('go', `#/chat/${conv.id}`); }], 8);
}

const narrow = () => innerWidth <= 860;
function close() {
  document.body.classList.remove('with-side');
  $('#veil').hidden = true;
}
export function toggle() {
  if (narrow()) {
    const open = document.body.classList.toggle('with-side');
    $('#veil').hidden = !open;
    if (open) $('#side .new').focus();
  } else document.body.classList.toggle('without-side');
}
