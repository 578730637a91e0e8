// Keys for all that is done often.

import { h, tool } from './dom.js';
import { beside, pick, toggleTokens } from './bar.js';
import { retryLast } from './chat.js';
import { focusMessage } from './composer.js';
import { present } from './models.js';
import * as reply from './reply.js';
import { toggle as toggleSide } from './side.js';
import { on, state, tell } from './state.js';
import { hide } from './tokens.js';

const APPLE = /Mac|iPhone|iPad/.test(navigator.platform);

// name, what it does, the key behind Ctrl (Command), whether with Shift, the act, whether in the chat alone
const KEYS = [
  ['K', 'Choose a model', 'k', false, () => pick(0), true],
  ['Shift K', 'Ask another model the same', 'k', true, beside, true],
  ['Shift O', 'New conversation', 'o', true, () => { tell('go', '#/'); focusMessage(); }, false],
  ['Shift L', 'Probabilities of tokens', 'l', true, toggleTokens, true],
  ['Shift Enter', 'Answer again', 'enter', true, () => { if (!reply.busy(state.conv)) retryLast(); }, true],
  [',', 'Settings of the conversation', ',', false, () => tell('options'), true],
  ['B', 'Conversations', 'b', false, toggleSide, false],
  ['/', 'These keys', '/', false, showKeys, false],
];
const OTHERS = [['Enter', 'Send'], ['Shift Enter', 'A new line'], ['Esc', 'Stop the answer'], ['↑', 'Edit the last message, from an empty field'],
  ['/', 'To the message'], ['← →', 'Tokens, where they are shown; Enter opens one']];

function showKeys() {
  if (document.querySelector('dialog.keys')) return;
  const caps = text => text.split(' ').map(name => h('kbd', {}, name));
  const row = (names, what) => h('tr', {}, h('td', {}, what), h('td', {}, ...names));
  const dialog = h('dialog', { class: 'keys', 'aria-label': 'Keys' },
    h('header', {}, h('h2', {}, 'Keys'), tool('close', 'Close', () => dialog.close())),
    h('table', {}, ...OTHERS.map(([names, what]) => row(caps(names), what)), ...KEYS.map(([names, what]) => row(caps(`${APPLE ? '⌘' : 'Ctrl'} ${names}`), what))));
  present(dialog);
}

export function startKeys() {
  on('keys', showKeys);
  addEventListener('keydown', event => {
    if (event.isComposing || document.querySelector('dialog[open]')) return;
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
    if (event.key === 'Escape') {
      if (!hide() && reply.busy(state.conv)) reply.stop(state.conv);
      return;
    }
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && state.pane === 'chat') {
      event.preventDefault();
      focusMessage();
      return;
    }
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const found = KEYS.find(([, , key, shift, , chatOnly]) => key === event.key.toLowerCase() && shift === event.shiftKey && (!chatOnly || state.pane === 'chat'));
    if (!found) return;
    event.preventDefault();
    found[4]();
  });
}
