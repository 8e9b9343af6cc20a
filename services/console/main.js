// Begins: asks for a key, asks the API whose it is, and shows that tenant's parts, each by its own module.
import { get, list, signIn, signOut } from './api.js';
import { compliance } from './compliance.js';
import { costs } from './costs.js';
import { choice, make } from './dom.js';
import { quotas } from './quotas.js';
import { runs } from './runs.js';
import { schedules } from './schedules.js';

const PARTS = [costs, compliance, runs, schedules, quotas];
const top = document.getElementById('top');
const content = document.getElementById('content');
const announce = (text) => { document.getElementById('announcer').textContent = text; };
let tenant = '';

function door(problem = '') {
  top.hidden = true;
  tenant = '';
  document.getElementById('tenant').replaceChildren();
  const field = make('input', { id: 'key', type: 'password', required: true, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', maxlength: '512',
    'aria-describedby': problem ? 'problem kept' : 'kept', 'aria-invalid': problem ? 'true' : null });
  const button = make('button', { type: 'submit' }, 'Sign in');
  const form = make('form', { class: 'door', onsubmit: (event) => {
    event.preventDefault();
    const given = field.value.trim();
    field.value = '';
    if (!given) return void field.focus();
    button.disabled = true;
    enter(given);
  } },
  make('img', { src: 'console/icon.svg', alt: '', width: '40', height: '40' }), make('h1', {}, 'Convergence console'),
  make('label', { for: 'key' }, 'API key'), field,
  problem ? make('p', { id: 'problem', class: 'problem', role: 'alert' }, problem) : null,
  button, make('p', { id: 'kept', class: 'note' }, 'The key stays in this tab’s memory. It is forgotten when you sign out, reload or close it.'));
  content.replaceChildren(form);
  field.focus();
}

/** The header takes visible ASCII only; a key with anything else is none. */
const possible = (given) => /^[\x21-\x7e]+$/.test(given);

async function enter(given) {
  if (!possible(given)) return door('This is not an API key: it holds characters that no key has.');
  signIn(given);
  announce('Signing in');
  try {
    const who = await get('whoami');
    const tenants = who.tenant_id ? [] : await list('tenants', 'tenants', { state: 'ACTIVE' });
    if (!who.tenant_id && !tenants.length) return leave('There is no tenant to show yet.');
    tenant = who.tenant_id || tenants[0].tenant_id;
    document.getElementById('tenant').replaceChildren(who.tenant_id ? make('b', {}, tenant)
      : choice('Tenant', tenants.map((one) => [one.tenant_id, one.tenant_id]), tenant, (chosen) => { tenant = chosen; show(); }));
    top.hidden = false;
    await show();
    content.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  } catch (error) {
    if (error.name !== 'AbortError') leave(error.status === 401 ? 'This key is not known, or it was taken back.' : error.message);
  }
}

async function show() {
  const shown = tenant;
  const today = new Date().toISOString().slice(0, 10);
  announce('Loading');
  const places = PARTS.map(() => make('div', { class: 'part' }, make('div', { class: 'waiting' })));
  content.replaceChildren(make('h1', { class: 'unseen' }, `Convergence console of ${shown}`), ...places);
  try {
    await Promise.all(PARTS.map(async (load, n) => {
      const section = await load(shown, today);
      if (shown === tenant) places[n].replaceWith(section);
    }));
    announce('Loaded');
  } catch (error) {
    if (error.name !== 'AbortError') leave('This key is no longer known. Sign in again.');
  }
}

function leave(problem = '') {
  signOut();
  announce(problem ? '' : 'Signed out');
  door(problem);
}

document.getElementById('sign-out').addEventListener('click', () => leave());
document.getElementById('refresh').addEventListener('click', () => show());
// A page that the browser keeps for its back button would keep the key.
window.addEventListener('pagehide', () => leave());
door();
