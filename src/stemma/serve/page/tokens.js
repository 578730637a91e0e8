// Tokens shaded by their probability; one that is pointed at says what else could stand there.

import { $, h } from './dom.js';
import { groups } from './reply.js';

const percent = log => {
  const p = Math.exp(log) * 100;
  return p >= 10 ? `${Math.round(p)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : '< 0.1 %';
};
const visible = text => text.replaceAll(' ', '␣').replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅';
const special = text => /^<[^\s<>]+>$|^\[[A-Z]+\]$/.test(text);

/** The text of a part as tokens in an element; `pick(upto, {t, p})` is called for a chosen alternative. */
export class Tokens {
  constructor(into, pick) {
    this.pick = pick;
    this.tokens = [];
    this.shown = [];
    this.box = h('div', { class: 'tokens', tabindex: '0', role: 'group', dir: 'auto',
      'aria-label': 'Tokens by probability: arrow keys move, Enter shows what else could stand there',
      onkeydown: event => this.key(event), onblur: () => this.at(null),
      onpointerover: event => this.point(event), onpointerleave: () => hideSoon(), onclick: event => this.click(event) });
    into.replaceChildren(this.box);
  }

  /** `going`: more will come, so half a character at the end waits for its other half. */
  show(tokens, going) {
    this.tokens = tokens;
    const now = groups(tokens);
    if (going && now.at(-1)?.text.includes('\ufffd')) now.pop();
    let same = Math.max(0, this.shown.length - 1); // the last one may have been half a character
    if (same && now[same]?.to === this.shown[same].to) same += 1;
    while (this.box.childElementCount > same) this.box.lastElementChild.remove();
    for (const group of now.slice(same)) this.box.append(this.one(group, tokens));
    this.shown = now;
  }

  one(group, tokens) {
    const held = tokens.slice(group.from, group.to), log = held.reduce((sum, token) => sum + token.p, 0);
    const span = h('span', { class: `token${held.some(token => token.chosen) ? ' chosen' : ''}` }, group.text);
    span.style.setProperty('--doubt', `${Math.round((1 - Math.exp(log)) * 100)}%`);
    span.stemma = { group, log };
    return span;
  }

  point(event) {
    const span = event.target.closest('.token');
    if (span && event.pointerType === 'mouse') showSoon(() => this.open(span));
  }

  click(event) {
    const span = event.target.closest('.token');
    if (span && getSelection().isCollapsed) this.open(span, true);
  }

  at(span) {
    this.box.querySelector('.at')?.classList.remove('at');
    span?.classList.add('at');
    span?.scrollIntoView({ block: 'nearest' });
  }

  key(event) {
    const now = this.box.querySelector('.at');
    const to = { ArrowRight: now ? now.nextElementSibling : this.box.firstElementChild,
      ArrowLeft: now?.previousElementSibling, Home: this.box.firstElementChild, End: this.box.lastElementChild }[event.key];
    if (to) this.at(to);
    else if (event.key === 'Enter' && now) this.open(now, true, true);
    else return;
    event.preventDefault();
  }

  open(span, kept = false, focus = false) {
    const { group, log } = span.stemma, { top } = this.tokens[group.from];
    const choices = top.map(([t, p]) => this.choice(group, t, p));
    const box = $('#alternatives');
    box.replaceChildren(
      h('p', {}, h('code', {}, visible(group.text)), h('strong', {}, percent(log))),
      ...choices,
      h('p', { class: 'hint' }, choices.length ? 'Choose one to go on from there.' : 'The server sent no alternatives.'));
    box.hidden = false;
    box.kept = kept;
    box.back = focus ? this.box : null;
    place(box, span.getClientRects()[0] ?? span.getBoundingClientRect());
    if (focus) (box.querySelector('button:not([disabled])') ?? box).focus();
  }

  choice(group, t, p) {
    const same = t === this.tokens[group.from].t;
    const why = t.includes('\ufffd') ? 'a part of a character' : special(t) ? 'a special token, which ends or marks texts' : '';
    const bar = h('span', { class: 'bar' });
    bar.style.setProperty('--share', `${Math.exp(p) * 100}%`);
    return h('button', { type: 'button', class: same ? 'same' : null, disabled: Boolean(why), title: why || null,
      'aria-label': `${visible(t)}, ${percent(p)}`,
      onclick: () => { hide(); this.pick(group.from, { t, p }); } }, bar, h('code', {}, visible(t)), h('span', { class: 'n' }, percent(p)));
  }
}

let soon = 0;
function showSoon(open) {
  clearTimeout(soon);
  if (!$('#alternatives').kept) soon = setTimeout(open, 90);
}
function hideSoon() {
  clearTimeout(soon);
  if (!$('#alternatives').kept) soon = setTimeout(hide, 260);
}

/** Close the alternatives; whether they were open. */
export function hide() {
  const box = $('#alternatives'), open = !box.hidden;
  clearTimeout(soon);
  box.hidden = true;
  box.kept = false;
  if (open && box.back && box.contains(document.activeElement)) box.back.focus();
  return open;
}

function place(box, { left, top, bottom }) {
  const width = box.offsetWidth, height = box.offsetHeight, space = 8;
  const below = bottom + 6 + height < innerHeight - space;
  box.style.left = `${Math.max(space, Math.min(left - 12, innerWidth - width - space))}px`;
  box.style.top = `${below ? bottom + 6 : Math.max(space, top - height - 6)}px`;
}

export function startTokens() {
  const box = $('#alternatives');
  box.addEventListener('pointerenter', () => clearTimeout(soon));
  box.addEventListener('pointerleave', hideSoon);
  document.addEventListener('pointerdown', event => {
    if (!box.contains(event.target) && !event.target.closest('.token')) hide();
  });
  $('#thread').addEventListener('scroll', () => { if (!box.hidden) hide(); }, { passive: true });
}
