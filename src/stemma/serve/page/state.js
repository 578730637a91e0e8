// What the page knows: the models, the conversation that is open, and who wants to hear of changes.

import { settings } from './store.js';

export const state = {
  models: [],
  heads: [], // of the conversations, the newest first
  conv: null,
  tokens: settings.get('tokens', false), // whether probabilities are asked for and shown
  trouble: '', // why there are no models
};

const listeners = new Map();
export function on(name, listener) { listeners.set(name, [...(listeners.get(name) ?? []), listener]); }
export function tell(name, ...what) { for (const listener of listeners.get(name) ?? []) listener(...what); }

export const model = name => state.models.find(m => m.id === name);
export const writers = () => state.models.filter(m => m.writes);

/** Ways to draw tokens. Small models wander off with the whole distribution, so a new user's conversations are balanced. */
export const PRESETS = {
  Exact: { temperature: 0 },
  Balanced: { temperature: 0.7, top_p: 0.95 },
  Free: { temperature: 1.1, min_p: 0.05 },
  'As the model has it': {},
};

/** What a new conversation begins with: the settings that were used last. */
export const usualSettings = () => settings.get('usual', { system: '', params: PRESETS.Balanced });

/** The models that a new conversation begins with: those used last that are there, else the first that writes. */
export function usual() {
  const kept = settings.get('models', []).filter(name => model(name)?.writes);
  return kept.length ? kept : writers().slice(0, 1).map(m => m.id);
}
