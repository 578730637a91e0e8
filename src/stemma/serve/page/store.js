// Conversations on this machine: IndexedDB, in two stores so that the list is read without the conversations.

import { settle } from './thread.js';

const NAME = 'stemma';
const memory = new Map(); // where the browser allows no database: until the page is closed
let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('heads', { keyPath: 'id' });
      request.result.createObjectStore('bodies', { keyPath: 'id' });
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('another tab holds the database'));
  });
  return opened;
}

/** Whether conversations outlive the page. */
export async function lasting() {
  try { await open(); return true; } catch { return false; }
}

async function transact(mode, work) {
  const db = await open();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(['heads', 'bodies'], mode);
    const request = work(transaction.objectStore('heads'), transaction.objectStore('bodies'));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

const head = ({ id, title, updated, models }) => ({ id, title, updated, models });

export async function list() {
  const heads = await lasting() ? await transact('readonly', store => store.getAll()) : [...memory.values()].map(head);
  return heads.sort((a, b) => b.updated - a.updated);
}

export async function get(id) {
  const conv = await lasting() ? await transact('readonly', (_, store) => store.get(id)) : memory.get(id);
  return conv && settle(conv);
}

export async function all() {
  return await lasting() ? transact('readonly', (_, store) => store.getAll()) : [...memory.values()];
}

export async function put(conv) {
  if (!await lasting()) { memory.set(conv.id, conv); return; }
  await transact('readwrite', (heads, bodies) => { heads.put(head(conv)); return bodies.put(conv); });
  others?.postMessage(conv.id);
}

export async function remove(id) {
  if (!await lasting()) { memory.delete(id); return; }
  await transact('readwrite', (heads, bodies) => { heads.delete(id); return bodies.delete(id); });
  others?.postMessage(id);
}

const others = 'BroadcastChannel' in window ? new BroadcastChannel('stemma.conversations') : null;

/** `told(id)` is called when another tab has changed a conversation. */
export function onOther(told) { if (others) others.onmessage = event => told(event.data); }

/** Small settings, kept as JSON. */
export const settings = {
  get(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(`stemma.${name}`)) ?? otherwise; } catch { return otherwise; }
  },
  set(name, value) {
    try { localStorage.setItem(`stemma.${name}`, JSON.stringify(value)); } catch { /* full or forbidden: not kept */ }
  },
};
