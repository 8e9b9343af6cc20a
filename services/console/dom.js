// Makes elements. Text is always a text node: nothing that an answer holds can become markup.

/** `make('p', {class: 'note', onclick: …}, 'text', child, …)`; null children are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'style') for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A part of the page: its heading, what stands beside it, and a body that `fill` replaces. */
export function part(id, title, beside = []) {
  const body = make('div', { class: 'body' });
  const section = make('section', { id, 'aria-labelledby': `${id}-title`, class: 'part' },
    make('div', { class: 'head' }, make('h2', { id: `${id}-title` }, title), make('div', { class: 'beside' }, beside)), body);
  return { section, body };
}

/** Puts what `load` brings into `body`; meanwhile a placeholder, and what went wrong with a way to try again. */
export async function fill(body, load) {
  body.setAttribute('aria-busy', 'true');
  if (!body.hasChildNodes()) body.replaceChildren(make('div', { class: 'waiting', 'aria-hidden': 'true' }));
  try {
    body.replaceChildren(...[await load()].flat());
  } catch (error) {
    if (error.name === 'AbortError' || error.status === 401) throw error;
    body.replaceChildren(failure(error, () => fill(body, load)));
  } finally {
    body.removeAttribute('aria-busy');
  }
}

/** What to show when a question failed. */
export function failure(error, again) {
  return make('div', { class: 'failure', role: 'alert' },
    make('p', {}, make('strong', {}, error.message || 'Something went wrong.')),
    error.requestId ? make('p', { class: 'note' }, 'Request ', make('code', {}, error.requestId)) : null,
    make('button', { type: 'button', onclick: again }, 'Try again'));
}

/** What to show when there is nothing. */
export const nothing = (title, ...text) => make('div', { class: 'nothing' }, make('p', {}, make('strong', {}, title)), make('p', { class: 'note' }, text));

/** A table that scrolls by itself on a narrow screen. `columns`: [{title, number, narrow}], `rows`: arrays of cells. */
export function table(caption, columns, rows) {
  const cell = (tag, column, content, extra = {}) => make(tag, {
    class: [column.number && 'number', column.narrow === false && 'wide-only'].filter(Boolean).join(' ') || null, ...extra }, content);
  return make('div', { class: 'scroller', tabindex: '0', role: 'group', 'aria-label': caption },
    make('table', {}, make('caption', { class: 'unseen' }, caption),
      make('thead', {}, make('tr', {}, columns.map((column) => cell('th', column, column.title, { scope: 'col' })))),
      make('tbody', {}, rows.map((row) => make('tr', {}, row.map((content, n) =>
        n === 0 ? cell('th', columns[n], content, { scope: 'row' }) : cell('td', columns[n], content)))))));
}

/** A bar as long as its share of the whole; the number stands beside it as text. */
export const bar = (share, kind = '') =>
  make('span', { class: `share ${kind}`.trim(), 'aria-hidden': 'true' }, make('span', { style: { width: `${Math.max(0, Math.min(1, share)) * 100}%` } }));

/** A small select with a label. */
export function choice(label, options, chosen, onchange) {
  const id = `choose-${label.toLowerCase()}`;
  return make('span', { class: 'choice' }, make('label', { for: id }, label),
    make('select', { id, onchange: (event) => onchange(event.target.value) },
      options.map(([value, text]) => make('option', { value, selected: value === chosen }, text))));
}
