// One message of a conversation as elements: what the user said, and the answers to it.

import { copyButton, count, h, icon, mark, tool } from './dom.js';
import * as feedback from './feedback.js';
import { Markdown } from './markdown.js';
import { goesOn } from './reply.js';
import { model, state } from './state.js';
import * as thread from './thread.js';
import { Tokens } from './tokens.js';

/** ‹ 2/3 › beneath a message that has others beside it. */
function branches(conv, node, acts) {
  const all = thread.siblings(conv, node), at = all.indexOf(node);
  if (all.length < 2) return null;
  const step = (by, name, label) => tool(name, label, () => acts.walk(node, by), { 'data-at': `${node.parent}${by}`, disabled: !all[at + by] });
  return h('span', { class: 'branches', role: 'group', 'aria-label': `Branch ${at + 1} of ${all.length}` },
    step(-1, 'left', 'The branch before'), h('span', {}, `${at + 1}/${all.length}`), step(1, 'right', 'The branch after'));
}

/** A field in place of a message's text. */
function editor(text, label, done, cancel) {
  const area = h('textarea', { value: text, 'aria-label': label, rows: Math.min(12, text.split('\n').length + 1), dir: 'auto' });
  const save = () => done(area.value);
  area.addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
    if (event.key === 'Escape') { event.stopPropagation(); cancel(); }
  });
  const form = h('div', { class: 'editor' }, area, h('div', { class: 'row' },
    h('button', { type: 'button', onclick: cancel }, 'Cancel'), h('button', { type: 'button', class: 'main', onclick: save }, label)));
  requestAnimationFrame(() => { area.focus(); area.setSelectionRange(text.length, text.length); });
  return form;
}

export function userMessage(conv, node, acts) {
  const bubble = h('div', { class: 'bubble', dir: 'auto' }, node.text);
  const item = h('article', { class: 'user', 'data-id': node.id, 'aria-label': 'You' }, bubble);
  const edit = () => {
    const form = editor(node.text, 'Send', text => (text.trim() ? acts.reask(node, text) : form.replaceWith(bubble)),
      () => form.replaceWith(bubble));
    bubble.replaceWith(form);
  };
  item.edit = edit;
  item.append(h('div', { class: 'tools' }, branches(conv, node, acts), copyButton(() => node.text), tool('edit', 'Edit and send again', edit)));
  return item;
}

/** A round of answers: one column a part. `views` gets the view of each part. */
export function round(conv, node, acts, views) {
  const parts = node.parts.map((part, i) => {
    const view = new PartView(conv, node, i, acts);
    views.set(part, view);
    return view.element;
  });
  const many = parts.length > 1;
  return h('article', { class: `round${many ? ' many' : ''}`, 'data-id': node.id, 'data-columns': parts.length },
    h('div', { class: 'columns', ...(many ? { tabindex: '0', role: 'group', 'aria-label': `${parts.length} answers side by side` } : {}) }, ...parts),
    many ? h('div', { class: 'tools' }, branches(conv, node, acts)) : null);
}

class PartView {
  constructor(conv, node, index, acts) {
    Object.assign(this, { conv, node, index, acts, part: node.parts[index] });
    const known = model(this.part.model);
    this.body = h('div', { class: 'body' });
    this.notes = h('div', { class: 'notes' });
    this.stats = h('span', { class: 'stats' });
    this.tools = h('div', { class: 'tools' });
    this.head = h('header', {}, mark(known?.structure), h('span', { class: 'name' }, this.part.model),
      known?.family ? h('span', { class: 'family' }, known.family) : null);
    this.element = h('section', { class: 'part', 'aria-label': `Answer of ${this.part.model}` }, this.head, this.body, this.notes, this.tools);
    this.drawn = '';
    this.update();
  }

  update() {
    const { part } = this, going = part.state === 'waiting' || part.state === 'writing';
    this.element.setAttribute('aria-busy', String(going));
    this.element.dataset.state = part.state;
    const kind = state.tokens && part.tokens?.length ? 'tokens' : 'text';
    if (kind !== this.kind) {
      this.kind = kind;
      this.body.replaceChildren();
      this.writer = kind === 'tokens' ? new Tokens(this.body, (upto, next) => this.acts.branch(this.node, this.index, upto, next)) : new Markdown(this.body);
    }
    if (kind === 'tokens') this.writer.show(part.tokens, going); else this.writer.show(part.text);
    this.body.classList.toggle('waiting', part.state === 'waiting' && !part.text);
    const drawn = JSON.stringify([part.state, part.error, part.finish, part.rated, Boolean(part.text)]);
    if (drawn !== this.drawn) { this.drawn = drawn; this.finish(going); }
    this.count(going);
  }

  finish(going) {
    const { part, acts, node, index, conv } = this;
    this.notes.replaceChildren(...this.said());
    if (going) { this.tools.replaceChildren(tool('stop', 'Stop this answer', () => acts.stop(part)), this.stats); return; }
    const edit = () => {
      const form = editor(part.text, 'Keep', text => acts.rewrite(node, index, text), () => form.replaceWith(this.body));
      this.body.replaceWith(form);
    };
    const single = node.parts.length === 1;
    this.tools.replaceChildren(...[single ? branches(conv, node, acts) : null, part.text ? copyButton(() => part.text) : null,
      tool('retry', 'Answer again', () => acts.retry(node, index)), tool('edit', 'Edit this answer', edit),
      part.text && goesOn(part.model) ? tool('forward', 'Go on writing', () => acts.further(node, index)) : null,
      ...feedback.tools(conv, node, index), this.stats].filter(Boolean));
  }

  said() {
    const { part } = this, line = (kind, text, ...more) => h('p', { class: kind, role: kind === 'error' ? 'alert' : null }, text, ...more);
    if (part.state === 'failed') {
      const again = h('button', { type: 'button', onclick: () => this.acts.retry(this.node, this.index) }, icon('retry'), 'Try again');
      return [line('error', h('span', {}, part.error), again)];
    }
    if (part.state === 'stopped') return [line('note', part.text ? 'Stopped.' : 'Stopped before the first word.')];
    if (part.finish === 'length' && goesOn(part.model)) {
      return [line('note', 'The limit of tokens was reached.', h('button', { type: 'button', onclick: () => this.acts.further(this.node, this.index) }, 'Go on'))];
    }
    return part.state === 'done' && !part.text.trim() ? [line('note', 'The model answered with nothing.')] : [];
  }

  count(going) {
    const { took } = this.part;
    if (!took || going) { this.stats.textContent = ''; return; }
    const rest = (took.all - took.first) / 1000, n = took.tokens;
    const rate = n > 1 && rest > 0.05 ? ` · ${+((n - 1) / rest).toPrecision(3)} tokens/s` : '';
    this.stats.textContent = this.stats.title = `${count(n)} token${n === 1 ? '' : 's'}${rate} · first ${(took.first / 1000).toFixed(2)} s`;
  }
}
