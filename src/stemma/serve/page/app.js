// The page begins: models and conversations are read, and the address says what is shown.

import * as api from './api.js';
import { startBar, together } from './bar.js';
import * as chat from './chat.js';
import { focusMessage, startComposer } from './composer.js';
import { $, h, toast, tool } from './dom.js';
import { take } from './exchange.js';
import { startKeys } from './keys.js';
import { present } from './models.js';
import { startOptions } from './options.js';
import { showPane } from './panes.js';
import { refresh, startSide, toggle } from './side.js';
import { on, state, tell } from './state.js';
import { lasting } from './store.js';
import * as thread from './thread.js';
import { hide, startTokens } from './tokens.js';

const coarse = matchMedia('(pointer: coarse)').matches; // no keyboard is thrown over the page of a telephone

/** #/ is a new conversation, #/chat/ID one of before, #/fill, #/embed and #/write the panes. */
async function route() {
  const [where = '', rest = ''] = location.hash.replace(/^#\/?/, '').split('/');
  const pane = ['fill', 'embed', 'write'].includes(where) ? where : 'chat';
  state.pane = pane;
  hide();
  $('#chat').hidden = pane !== 'chat';
  $('#pane').hidden = pane === 'chat';
  if (pane !== 'chat') {
    $('#options').hidden = true;
    document.body.classList.remove('with-options');
    let name = rest;
    try { name = decodeURIComponent(rest); } catch { /* as it stands */ }
    showPane(pane, name);
    document.title = `${pane[0].toUpperCase()}${pane.slice(1)} · Stemma`;
  } else if (where === 'chat' && rest) {
    if (rest !== state.conv?.id && !await chat.open(rest)) history.replaceState(null, '', '#/');
  } else if (!state.conv || thread.path(state.conv).length) chat.fresh();
  tell('pane', pane);
  if (pane === 'chat' && !coarse) focusMessage();
}

function go(hash) {
  if (location.hash === hash || (hash === '#/' && !location.hash)) route(); else location.hash = hash;
}

let waiting = 0; // between looks for models while there are none, or where new ones are trained on what people say
const LOOK = { none: 2000, feedback: 8000 }; // milliseconds

async function load(told = true) {
  clearTimeout(waiting);
  const before = JSON.stringify([state.models, state.trouble]), known = new Set(state.models.map(one => one.id));
  let refused = false;
  try {
    state.models = await api.models();
    state.trouble = '';
  } catch (error) {
    state.trouble = error.message;
    refused = error.status === 401;
    if (told || refused) toast(error.message, refused ? ['Give a key', load] : null, refused ? 60 : 10);
  }
  const look = state.models.length ? (api.server.feedback ? LOOK.feedback : 0) : LOOK.none;
  if (look && !refused) waiting = setTimeout(() => load(false), look);
  if (JSON.stringify([state.models, state.trouble]) === before) return;
  if (state.conv && !state.conv.models.length && !thread.path(state.conv).length) chat.fresh();
  tell('models');
  for (const one of known.size ? state.models : []) {
    if (one.writes && !known.has(one.id)) toast(`${one.id} is served now.`, ['Side by side', () => together(one.id)], 30);
  }
  if (state.pane && state.pane !== 'chat' && !$('#pane form')) showPane(state.pane);
}

/** The field for a key, where the server wants one. */
function askForKey(said) {
  return new Promise(resolve => {
    const input = h('input', { type: 'password', autocomplete: 'off', 'aria-label': 'API key', placeholder: 'API key' });
    let typed = null;
    const dialog = h('dialog', { class: 'key', 'aria-label': 'API key' },
      h('header', {}, h('h2', {}, 'This server asks for a key'), tool('close', 'Close', () => dialog.close())),
      h('form', { onsubmit: event => { event.preventDefault(); typed = input.value.trim() || null; dialog.close(); } },
        said ? h('p', { class: 'error', role: 'alert' }, said) : null, input,
        h('p', { class: 'hint' }, 'It is sent to this server alone and forgotten when the tab is closed.'),
        h('div', { class: 'row' }, h('button', { type: 'submit', class: 'main' }, 'Go on'))));
    present(dialog, () => resolve(typed));
    input.focus();
  });
}

function dropping() {
  addEventListener('dragover', event => { if (event.dataTransfer?.types.includes('Files')) event.preventDefault(); });
  addEventListener('drop', event => {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}

function named(conv) {
  if (state.pane !== 'chat') return;
  document.title = conv.title ? `${conv.title} · Stemma` : 'Stemma';
  const hash = thread.path(conv).length ? `#/chat/${conv.id}` : '';
  if (hash && location.hash !== hash) history.replaceState(null, '', hash);
}

async function begin() {
  api.onKey(askForKey);
  startSide();
  startBar({ toggle });
  startComposer();
  chat.startChat();
  startOptions();
  startTokens();
  startKeys();
  dropping();
  on('conv', named);
  on('go', go);
  on('stale', () => load(false));
  addEventListener('hashchange', route);
  await Promise.all([load(), refresh()]);
  await route();
  document.documentElement.dataset.ready = 'yes';
  if (!await lasting()) toast('This browser keeps no conversations here: they last until the page is closed.', null, 12);
}

begin();
