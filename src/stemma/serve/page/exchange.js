// Conversations as files: JSON holds all of them, Markdown the path that is shown. Both can be brought in again.

import { $, download, h, toast } from './dom.js';
import { state, tell } from './state.js';
import * as store from './store.js';
import * as thread from './thread.js';

const MARK = 'stemma:';
const fileName = (conv, ending) => `${(conv.title || 'conversation').toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-+|-+$/g, '').slice(0, 50) || 'conversation'}.${ending}`;

export function saveJson(conv) {
  download(fileName(conv, 'json'), JSON.stringify(conv, null, 1), 'application/json');
}

export async function saveAll() {
  const all = await store.all();
  if (!all.length) { toast('There are no conversations yet.'); return; }
  download('conversations.json', JSON.stringify({ conversations: all }), 'application/json');
}

export function saveMarkdown(conv) { download(fileName(conv, 'md'), markdown(conv), 'text/markdown'); }

// a message begins with a comment, which readers of Markdown do not show; the same in a text gets a backslash
const safe = text => text.replace(/^<!-- (\\*)stemma:/gm, '<!-- \\$1stemma:');
const unsafe = text => text.replace(/^<!-- \\(\\*)stemma:/gm, '<!-- $1stemma:');

export function markdown(conv) {
  const lines = [`# ${conv.title.replaceAll('\n', ' ')}`];
  const message = (who, name, text) => lines.push(`<!-- ${MARK} ${who} ${JSON.stringify(name).replaceAll('-->', '--\\u003e')} -->\n### ${name}\n\n${safe(text)}`);
  if (conv.system) message('system', 'System', conv.system);
  for (const node of thread.path(conv)) {
    if (node.role === 'user') message('user', 'You', node.text);
    else for (const part of node.parts) message('assistant', part.model, part.text);
  }
  return `${lines.join('\n\n')}\n`;
}

export function fromMarkdown(text) {
  const pieces = text.replaceAll('\r\n', '\n').split(/^<!-- stemma: (system|user|assistant) (".*") -->\n### .*\n\n/m);
  if (pieces.length < 4) throw new Error('this Markdown was not saved by this page: it has no marks of messages');
  const conv = thread.begin([]), models = new Set();
  let round = null;
  for (let i = 1; i < pieces.length; i += 3) {
    const [who, name] = [pieces[i], String(JSON.parse(pieces[i + 1]))], said = unsafe(pieces[i + 2].replace(/\n\n?$/, ''));
    if (who === 'system') conv.system = said;
    else if (who === 'user') { thread.ask(conv, said); round = null; } else {
      const part = { model: name, text: said, state: 'done' };
      models.add(name);
      if (round) round.parts.push(part); else round = thread.answer(conv, thread.path(conv).at(-1)?.id ?? null, [part]);
    }
  }
  conv.models = round ? round.parts.map(part => part.model) : [...models];
  conv.title = /^# (.*)/.exec(text)?.[1] || conv.title;
  return conv;
}

/** The conversations in the text of a file. Raises an Error that says what is wrong. */
export function read(name, text) {
  if (/\.(md|markdown)$/i.test(name)) return [fromMarkdown(text)];
  let data;
  try { data = JSON.parse(text); } catch { throw new Error('it is neither JSON nor Markdown that this page saved'); }
  return (Array.isArray(data?.conversations) ? data.conversations : [data]).map(thread.checked);
}

export function bringIn() {
  const input = h('input', { type: 'file', accept: '.json,.md,application/json,text/markdown', multiple: true, class: 'away', id: 'files', 'aria-label': 'Files of conversations' });
  $('#files')?.remove();
  document.body.append(input);
  input.addEventListener('change', async () => { await take([...input.files]); input.remove(); });
  input.click();
}

export async function take(files) {
  const brought = [];
  for (const file of files) {
    try {
      if (file.size > 200e6) throw new Error('it is larger than 200 MB');
      const found = read(file.name, await file.text());
      for (const conv of found) await store.put(conv);
      brought.push(...found);
    } catch (error) {
      toast(`${file.name} was not brought in: ${error.message}.`, null, 12);
    }
  }
  if (!brought.length) return;
  tell('kept', state.conv);
  tell('go', `#/chat/${brought.at(-1).id}`);
  toast(brought.length === 1 ? `“${brought[0].title}” was brought in.` : `${brought.length} conversations were brought in.`);
}
