// What was spent: by day and service, by provider and account, month over month; one currency at a time.
import { get, list } from './api.js';
import { legend, stackedBars } from './charts.js';
import { bar, choice, fill, make, nothing, part, table } from './dom.js';
import { change, count, day, daysOf, exact, money, month, sum } from './format.js';

const SHOWN = 6;
const YEARS_DAYS = 1095;
const OTHER = 'Other services';
const NONE = '(none)';

export async function costs(tenant, today) {
  const path = `costs/${tenant}`;
  const chosen = { month: '', currency: '', metric: 'billed' };
  const first = new Date(Date.parse(today) - YEARS_DAYS * 86400000).toISOString().slice(0, 10);
  const { section, body } = part('costs', 'Costs');
  const beside = section.querySelector('.beside');

  async function load() {
    const months = await list(path, 'costs', { group_by: 'month', start_date: first, end_date: today, metric: chosen.metric });
    if (!months.length) {
      beside.replaceChildren();
      return nothing('No costs yet.', 'They appear here once a cost pipeline has run: store a credential, then run or schedule one. The ',
        make('a', { href: 'docs' }, 'API reference'), ' shows how.');
    }
    const currencies = [...new Set(months.map((one) => one.currency))].sort((a, b) => (b === 'USD') - (a === 'USD') || a.localeCompare(b));
    if (!currencies.includes(chosen.currency)) chosen.currency = currencies[0];
    const mine = months.filter((one) => one.currency === chosen.currency);
    const names = mine.map((one) => one.dimensions.month.slice(0, 7)).sort().reverse();
    if (!names.includes(chosen.month)) chosen.month = names[0];
    const change_of = (name) => (value) => { chosen[name] = value; fill(body, load); };
    beside.replaceChildren(
      choice('Month', names.map((name) => [name, month(name)]), chosen.month, change_of('month')),
      ...(currencies.length > 1 ? [choice('Currency', currencies.map((one) => [one, one]), chosen.currency, change_of('currency'))] : []),
      choice('Cost', [['billed', 'Billed'], ['effective', 'Effective']], chosen.metric, change_of('metric')));
    return period(mine);
  }

  async function period(months) {
    const { currency, metric } = chosen;
    const days = daysOf(chosen.month).filter((one) => one <= today);
    const asked = { start_date: days[0], end_date: days.at(-1), currency, metric };
    const compared = { ...asked, compare: true };
    const [[total, kept], daily, services, accounts] = await Promise.all([
      get(path, compared).then((answer) => [answer.costs[0], answer.quarantined || []]),
      list(path, 'costs', { ...asked, group_by: ['day', 'service'] }),
      list(path, 'costs', { ...compared, group_by: 'service' }),
      list(path, 'costs', { ...compared, group_by: ['provider', 'account'] }),
    ]);
    const before = days.length === daysOf(chosen.month).length ? 'on the month before' : `on the ${days.length} days before`;
    return [
      headline(total, before, currency),
      ...kept.map(quarantined),
      byDay(days, daily, services, currency),
      make('div', { class: 'pair' },
        make('div', {}, make('h3', {}, 'By service'), compare('Costs by service', ['Service'], services, (one) => [one.dimensions.service || NONE], currency)),
        make('div', {}, make('h3', {}, 'By provider and account'),
          compare('Costs by provider and account', ['Account'], accounts, (one) => [account(one.dimensions)], currency))),
      make('h3', {}, 'Month over month'), monthly(months, currency),
    ];
  }

  await fill(body, load);
  return section;
}

const PROVIDERS = { gcp: 'Google Cloud', aws: 'AWS', azure: 'Azure' };
const account = (dimensions) => make('span', { class: 'two' }, make('span', {}, dimensions.account || NONE),
  make('span', { class: 'note' }, PROVIDERS[(dimensions.provider || '').toLowerCase()] || dimensions.provider || ''));

const quarantined = (kept) => make('p', { class: 'note' }, `${count(kept.rows)} rows of ${PROVIDERS[kept.provider] || kept.provider} (${money(kept.cost, kept.currency)})`
  + ' are in quarantine and in no sum: table x_quarantine has the reasons.');

function headline(total, before, currency) {
  const cost = total?.cost || '0';
  const previous = total?.previous_cost || '0';
  return make('p', { class: 'headline' }, make('strong', {}, money(cost, currency)), ' ',
    moved(cost, previous), make('span', { class: 'note' }, ` ${before}, ${money(previous, currency)}`));
}

function moved(now, before) {
  const text = change(now, before);
  const up = exact(now) > exact(before);
  return make('span', { class: !text || text === 'new' ? 'moved' : up ? 'moved up' : 'moved down' }, text);
}

function byDay(days, daily, services, currency) {
  const names = services.map((one) => one.dimensions.service);
  const shown = names.slice(0, names.length > SHOWN + 1 ? SHOWN : SHOWN + 1);
  const rest = names.length > shown.length;
  const series = [...shown, ...(rest ? [OTHER] : [])];
  const colours = series.map((_, n) => (rest && n === series.length - 1 ? '--other' : `--c${n + 1}`));
  const at = new Map(days.map((one) => [one, series.map(() => [])]));
  for (const one of daily) {
    const found = shown.indexOf(one.dimensions.service);
    at.get(one.dimensions.day)?.[found < 0 ? series.length - 1 : found].push(one.cost);
  }
  const texts = days.map((one) => at.get(one).map(sum));
  const title = (name) => name || NONE;
  const chart = stackedBars({
    label: `Cost by day and service from ${day(days[0])} to ${day(days.at(-1))}. The table below has the numbers.`,
    labels: days.map(day),
    series: series.map((name, n) => ({ name, colour: colours[n], values: texts.map((row) => Number(row[n])) })),
    format: (number) => money(String(number), currency, 1),
    tip: (n) => [`${day(days[n])} · ${money(sum(texts[n]), currency)}`,
      series.map((name, k) => [colours[k], title(name), texts[n][k]]).filter(([, , text]) => exact(text) !== 0n)
        .sort((a, b) => (exact(b[2]) > exact(a[2]) ? 1 : -1)).map(([swatch, name, text]) => [swatch, name, money(text, currency)])],
  });
  const rows = days.map((one, n) => [day(one), ...texts[n].map((text) => money(text, currency)), money(sum(texts[n]), currency)]);
  return make('div', {}, legend(series.map((name, n) => [colours[n], title(name)])), chart,
    make('details', {}, make('summary', {}, 'By day, as a table'),
      table('Cost by day and service', [{ title: 'Day' }, ...series.map((name) => ({ title: title(name), number: true })), { title: 'All', number: true }], rows)));
}

function compare(caption, titles, groups, cells, currency) {
  const most = groups.reduce((high, one) => Math.max(high, Number(one.cost)), 0) || 1;
  const shown = groups.slice(0, 12);
  const rows = shown.map((one) => [...cells(one), bar(Number(one.cost) / most), money(one.cost, currency), moved(one.cost, one.previous_cost)]);
  const more = groups.length - shown.length;
  return [
    table(caption, [...titles.map((title) => ({ title })), { title: make('span', { class: 'unseen' }, 'Share'), narrow: false }, { title: 'Cost', number: true }, { title: 'Change', number: true }], rows),
    more > 0 ? make('p', { class: 'note' }, `and ${more} more, ${money(sum(groups.slice(shown.length).map((one) => one.cost)), currency)} together`) : null,
  ];
}

function monthly(months, currency) {
  const sorted = [...months].sort((a, b) => a.dimensions.month.localeCompare(b.dimensions.month)).slice(-13);
  const most = Math.max(...sorted.map((one) => Number(one.cost))) || 1;
  const rows = sorted.map((one, n) => [month(one.dimensions.month), bar(Number(one.cost) / most), money(one.cost, currency), n ? moved(one.cost, sorted[n - 1].cost) : '']).slice(-12).reverse();
  return table('Costs month over month', [{ title: 'Month' }, { title: make('span', { class: 'unseen' }, 'Share') }, { title: 'Cost', number: true }, { title: 'Change', number: true }], rows);
}
