// Asks the public API with the key that signed in. The key lives in this module's memory and nowhere else: not in
// storage, not in a cookie, not in an address; it is gone when the page is closed, left or signed out of.

let key = '';
let session = new AbortController();

/** An answer that is no success: what it says, its reason, and the id under which the logs have it. */
export class ApiError extends Error {
  constructor(status, body, requestId) {
    super(body?.message || `The gateway answered ${status}.`);
    this.name = 'ApiError';
    this.status = status;
    this.reason = body?.details?.[0]?.reason || '';
    this.requestId = requestId;
  }
}

export function signIn(given) {
  key = given;
  session = new AbortController();
}

/** Forgets the key and ends every question that is under way. */
export function signOut() {
  key = '';
  session.abort();
}

async function send(path, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== '' && one !== undefined) parameters.append(name, one);
  }
  const tail = parameters.size ? `?${parameters}` : '';
  let answer;
  try {
    answer = await fetch(`api/v1/${path}${tail}`, { headers: { 'X-API-Key': key }, signal: session.signal, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, { message: 'The gateway cannot be reached. Check the connection.' }, '');
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new ApiError(answer.status, body, answer.headers.get('x-request-id') || '');
  }
  return answer;
}

export const get = async (path, query) => (await send(path, query)).json();

/** All pages of a list, up to `most` entries. */
export async function list(path, name, query = {}, most = 20000) {
  const found = [];
  let page_token = '';
  do {
    const page = await get(path, { ...query, page_size: 1000, page_token });
    found.push(...page[name]);
    page_token = page.next_page_token;
  } while (page_token && found.length < most);
  return found;
}

/** The messages of a stream as they arrive, one JSON object a line. */
export async function* stream(path) {
  const reader = (await send(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) if (line.trim()) yield JSON.parse(line);
  }
  if (rest.trim()) yield JSON.parse(rest);
}
