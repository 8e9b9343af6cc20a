// Numbers, money and times as people read them. Money stays a decimal text: no sum of it passes through a float.

const SCALE = 18;

/** A decimal text as a whole number of 10^-18, for exact sums. */
export function exact(text) {
  const [, sign, whole, part = ''] = /^(-?)(\d*)(?:\.(\d*))?$/.exec(text || '0') || [, '', '0', ''];
  const units = BigInt((whole || '0') + part.slice(0, SCALE).padEnd(SCALE, '0'));
  return sign ? -units : units;
}

/** The decimal text of such a whole number. */
export function decimal(units) {
  const digits = (units < 0n ? -units : units).toString().padStart(SCALE + 1, '0');
  const part = digits.slice(-SCALE).replace(/0+$/, '');
  return `${units < 0n ? '-' : ''}${digits.slice(0, -SCALE)}${part ? `.${part}` : ''}`;
}

export const sum = (texts) => decimal(texts.reduce((total, text) => total + exact(text), 0n));

/** Money with its currency; a decimal text is rounded once, for the eye. */
export function money(text, currency, digits) {
  const options = digits === undefined ? {} : { minimumFractionDigits: 0, maximumFractionDigits: digits, notation: 'compact' };
  try {
    return new Intl.NumberFormat('en', { style: 'currency', currency, ...options }).format(text || '0');
  } catch {
    return `${text || '0'} ${currency}`;
  }
}

/** The change from one sum to another, in percent: '+4.2 %', 'new', or '' where both are nothing. */
export function change(now, before) {
  const [current, previous] = [exact(now), exact(before)];
  if (previous === 0n) return current === 0n ? '' : 'new';
  const percent = Number((current - previous) * 1000n / (previous < 0n ? -previous : previous)) / 10;
  return `${percent > 0 ? '+' : percent < 0 ? '−' : '±'}${Math.abs(percent).toFixed(1)} %`;
}

export const count = (number) => new Intl.NumberFormat('en').format(number || 0);
export const percent = (share) => `${(share * 100).toFixed(1)} %`;

const MONTH = new Intl.DateTimeFormat('en', { month: 'long', year: 'numeric', timeZone: 'UTC' });
const DAY = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const MOMENT = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', year: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23', timeZone: 'UTC' });

export const month = (text) => MONTH.format(new Date(`${text.slice(0, 7)}-01T00:00:00Z`));
export const day = (text) => DAY.format(new Date(`${text}T00:00:00Z`));
export const moment = (text) => (text ? `${MOMENT.format(new Date(text))} UTC` : '–');
export const dates = (first, last) => (!first ? '–' : !last || first === last ? day(first) : `${day(first)} – ${day(last)}`);

/** Seconds as '850 ms', '12.4 s', '3 min 20 s' or '2 h 5 min'. */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return '–';
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.round((seconds % 86400) / 3600)} h`;
}

/** 'in 3 h 5 min' or '2 min 0 s ago'. */
export function away(text, now = Date.now()) {
  const seconds = (new Date(text) - now) / 1000;
  return seconds >= 0 ? `in ${duration(seconds)}` : `${duration(-seconds)} ago`;
}

/** First and last day of a month 'YYYY-MM'. */
export function daysOf(text) {
  const [year, number] = text.split('-').map(Number);
  const length = new Date(Date.UTC(year, number, 0)).getUTCDate();
  return Array.from({ length }, (_, n) => `${text}-${String(n + 1).padStart(2, '0')}`);
}
