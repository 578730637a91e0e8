// The field for the next message.

import { $, h, icon } from './dom.js';
import * as chat from './chat.js';
import * as reply from './reply.js';
import { on, state } from './state.js';

const drafts = new Map(); // what was begun in each conversation
const touched = matchMedia('(hover: none) and (pointer: coarse)').matches; // there Enter begins a line, and the button sends
const PLACEHOLDERS = { chat: 'Message', text: 'A text to go on with', source: 'A text to answer' };
let held = null;

export function startComposer() {
  const area = h('textarea', { id: 'message', rows: 1, 'aria-label': 'Message', dir: 'auto', enterkeyhint: touched ? 'enter' : 'send', autocomplete: 'off' });
  const button = h('button', { type: 'submit', class: 'send' });
  const hint = h('p', { class: 'hint' });
  $('#composer').append(h('div', { class: 'field' }, area, button), hint);

  const size = () => {
    area.style.height = 'auto';
    area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
    button.disabled = !reply.busy(state.conv) && !area.value.trim();
  };
  const dress = () => {
    const busy = reply.busy(state.conv);
    button.replaceChildren(icon(busy ? 'stop' : 'send'));
    button.classList.toggle('busy', busy);
    button.setAttribute('aria-label', busy ? 'Stop' : 'Send');
    button.title = busy ? 'Stop (Esc)' : 'Send (Enter)';
    size();
  };
  const submit = () => {
    if (reply.busy(state.conv)) { reply.stop(state.conv); return; }
    if (area.value.trim() && chat.send(area.value)) { area.value = ''; dress(); }
  };

  dress();

  $('#composer').addEventListener('submit', event => { event.preventDefault(); submit(); });
  area.addEventListener('input', size);
  area.addEventListener('keydown', event => {
    if (event.isComposing || event.keyCode === 229) return; // an input method is at work
    if (event.key === 'Enter' && !event.shiftKey && !touched) {
      event.preventDefault();
      if (!reply.busy(state.conv)) submit();
    } else if (event.key === 'ArrowUp' && !area.value && !reply.busy(state.conv)) {
      if (chat.editLast()) event.preventDefault();
    }
  });
  on('busy', dress);
  on('draft', text => { area.value = text; size(); area.focus(); });
  on('conv', conv => {
    if (held !== conv.id) {
      if (held) drafts.set(held, area.value);
      area.value = drafts.get(conv.id) ?? '';
      held = conv.id;
    }
    const [name] = conv.models;
    area.placeholder = name ? `${PLACEHOLDERS[reply.manner(name)]}…` : 'No model to talk to';
    const several = conv.models.length > 1 ? ` · asks ${conv.models.length} models at once` : '';
    hint.replaceChildren(h('kbd', {}, 'Enter'), ' sends, ', h('kbd', {}, 'Shift'), ' ', h('kbd', {}, 'Enter'), ` begins a line${several}`);
    dress();
  });
}

export const focusMessage = () => $('#message').focus();
