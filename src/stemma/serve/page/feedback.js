// What people think of answers, for a server that keeps it: thumbs, the better of several, and answers that were edited.

import { post, server } from './api.js';
import { say, toast, tool } from './dom.js';
import { keep } from './reply.js';
import { tell } from './state.js';
import * as thread from './thread.js';

const about = (conv, node, index) => ({ id: `${conv.id}/${node.id}/${index}`, messages: thread.messages(conv, node, index), model: node.parts[index].model });

/** Send rows; once they are kept, the parts are marked. */
async function send(conv, node, rows, marks) {
  try {
    for (const row of rows) await post('feedback', row);
  } catch (error) {
    toast(`This was not kept: ${error.message}`);
    return;
  }
  for (const [index, rated] of marks) {
    node.parts[index].rated = rated;
    tell('part', conv, node, index);
  }
  keep(conv);
  say('Kept. Thank you.');
}

function thumb(conv, node, index, liked) {
  const row = { ...about(conv, node, index), kind: 'thumb', answer: node.parts[index].text, liked };
  send(conv, node, [row], [[index, liked ? 'up' : 'down']]);
}

/** This answer is better than those beside it. */
function better(conv, node, index) {
  const { text } = node.parts[index], own = about(conv, node, index);
  const others = node.parts.map((part, i) => [part, i]).filter(([part, i]) => i !== index && part.text.trim() && part.text.trim() !== text.trim());
  if (!others.length) { toast('The answers beside it are the same or empty: there is nothing to prefer.'); return; }
  const rows = others.map(([part, i]) => ({ ...own, id: `${own.id}-${i}`, kind: 'pair', answer: text, other: part.text, other_model: part.model }));
  send(conv, node, rows, [[index, 'better'], ...others.map(([, i]) => [i, 'worse'])]);
}

/** Somebody has written a better answer. */
export function edited(conv, node, index, text) {
  const { text: other } = node.parts[index];
  if (!server.feedback || !text.trim() || !other.trim() || text.trim() === other.trim()) return;
  send(conv, node, [{ ...about(conv, node, index), kind: 'edit', answer: text, other }], []);
}

/** The tools beneath an answer. */
export function tools(conv, node, index) {
  const part = node.parts[index];
  if (!server.feedback || !part.text.trim() || part.state === 'failed') return [];
  const one = (name, label, mark, act) => tool(name, label, act, { 'aria-pressed': String(part.rated === mark), class: `tool rate${part.rated === mark ? ' on' : ''}` });
  return [one('up', 'A good answer', 'up', () => thumb(conv, node, index, true)),
    one('away', 'A bad answer', 'down', () => thumb(conv, node, index, false)),
    node.parts.length > 1 ? one('star', 'Better than the others', 'better', () => better(conv, node, index)) : null];
}
