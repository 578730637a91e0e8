// The family tree as the chooser of models.

import { count, h, icon, mark, short, tool } from './dom.js';
import { on, state, tell } from './state.js';

/** The tree of the families that lead to models: {name, kids: Map, models: []}. */
export function grow(models) {
  const root = { name: '', kids: new Map(), models: [] };
  for (const one of models) {
    let at = root;
    const line = one.lineage.at(-1) === one.family || !one.family ? one.lineage : [...one.lineage, one.family];
    for (const name of line) {
      if (!at.kids.has(name)) at.kids.set(name, { name, kids: new Map(), models: [] });
      at = at.kids.get(name);
    }
    at.models.push(one);
  }
  return root;
}

/** A family and what hangs from it; families that lead to one other and have no model stand on one line with it. */
function branch(node, option) {
  const names = [node.name];
  let at = node;
  while (!at.models.length && at.kids.size === 1) { [at] = at.kids.values(); names.push(at.name); }
  return h('li', {},
    h('div', { class: 'families' }, ...names.flatMap((name, i) => [i ? h('i', { 'aria-hidden': 'true' }, '›') : null,
      h('span', { class: i === names.length - 1 ? 'own' : null }, name)])),
    h('ul', {}, ...at.models.map(one => h('li', {}, option(one))), ...[...at.kids.values()].map(kid => branch(kid, option))));
}

const facts = one => [one.parameters ? `${short(one.parameters)} parameters` : '', one.context ? `${count(one.context)} tokens of context` : '', one.structure];

let redraw = null; // of the tree that is open
on('models', () => redraw?.());

/** Let the user choose a model; resolves to it, or to null. `fits(model)` says which can do what is wanted. */
export function choose({ title = 'Choose a model', now = '', fits = () => true, otherwise = '' } = {}) {
  return new Promise(resolve => {
    const search = h('input', { type: 'search', placeholder: 'Search models and families', 'aria-label': 'Search models and families' });
    const tree = h('ul', { class: 'tree' });
    const done = one => { dialog.returned = one; dialog.close(); };
    const option = one => h('button', { type: 'button', class: `option${one.id === now ? ' now' : ''}${fits(one) ? '' : ' other'}`, 'aria-current': one.id === now ? 'true' : null, onclick: () => done(one) },
      mark(one.structure), h('span', { class: 'name' }, one.id),
      h('span', { class: 'facts' }, [...facts(one), fits(one) ? '' : otherwise].filter(Boolean).join(' · ')), one.id === now ? icon('check') : null);
    const draw = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const hits = state.models.filter(one => words.every(word => [one.id, one.structure, ...one.lineage].join(' ').toLowerCase().includes(word)));
      const { kids, models } = grow(hits);
      tree.replaceChildren(...models.map(one => h('li', {}, option(one))), ...[...kids.values()].map(kid => branch(kid, option)));
      if (!hits.length) tree.append(h('li', { class: 'none' }, state.trouble || 'No model has these words.'));
    };
    const dialog = h('dialog', { class: 'chooser', 'aria-label': title },
      h('header', {}, h('h2', {}, title), tool('close', 'Close', () => dialog.close())), search, h('div', { class: 'scroll' }, tree));
    dialog.addEventListener('keydown', event => {
      const options = [...dialog.querySelectorAll('.option')], at = options.indexOf(document.activeElement);
      const to = { ArrowDown: options[at + 1], ArrowUp: at === 0 ? search : options[at - 1] }[event.key];
      if (to) { event.preventDefault(); to.focus(); }
      if (event.key === 'Enter' && document.activeElement === search) { event.preventDefault(); options[0]?.click(); }
    });
    search.addEventListener('input', draw);
    present(dialog, () => { redraw = null; resolve(dialog.returned ?? null); });
    draw();
    redraw = draw;
    if (innerWidth > 860) dialog.style.minHeight = `${dialog.offsetHeight}px`; // it keeps its size while words are typed
    tell('stale'); // models may have come and gone since
    if (matchMedia('(pointer: coarse)').matches) dialog.focus(); else search.focus();
  });
}

/** Open a dialog that a click beside it closes; it leaves the page when it is closed. */
export function present(dialog, closed = () => {}) {
  dialog.addEventListener('pointerdown', event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => { dialog.remove(); closed(); });
  document.body.append(dialog);
  dialog.showModal();
}
