// How much of the plan is used, now and over the last weeks.
import { get } from './api.js';
import { stackedBars } from './charts.js';
import { bar, fill, make, part, table } from './dom.js';
import { away, count, day } from './format.js';

const DAYS = 30;

export async function quotas(tenant, today) {
  const { section, body } = part('quotas', 'Quotas');
  await fill(body, async () => {
    const usage = await get(`tenants/${tenant}/usage`);
    const meters = [['Today', usage.daily], ['This month', usage.monthly], ['At this moment', usage.concurrent]].map(([title, quota]) => {
      const share = quota.limit ? quota.used / quota.limit : 0;
      return make('li', {}, make('span', { class: 'note' }, title), make('strong', {}, count(quota.used), make('small', {}, ` of ${count(quota.limit)} runs`)),
        bar(share, share >= 1 ? 'bad' : share >= 0.8 ? 'fair' : ''),
        make('span', { class: 'note' }, `${count(quota.remaining)} left`, quota.reset_time && quota.used ? `, given back ${away(quota.reset_time)}` : ''));
    });
    const used = new Map(usage.history.map((one) => [one.date, one.used]));
    if (usage.daily.used) used.set(today, usage.daily.used);
    const days = Array.from({ length: DAYS }, (_, n) => new Date(Date.parse(today) - (DAYS - 1 - n) * 86400000).toISOString().slice(0, 10));
    const values = days.map((one) => used.get(one) || 0);
    const total = values.reduce((all, one) => all + one, 0);
    return [make('ul', { class: 'meters' }, meters), ...(total ? [
      make('h3', {}, `Runs a day, last ${DAYS} days`),
      stackedBars({ label: `${count(total)} runs in the last ${DAYS} days. The table below has the numbers.`, labels: days.map(day), height: 150,
        series: [{ name: 'Runs', colour: '--c1', values }], format: (number) => (Number.isInteger(number) ? count(number) : ''), tip: (n) => [day(days[n]), [['--c1', 'Runs', count(values[n])]]] }),
      make('details', {}, make('summary', {}, 'By day, as a table'),
        table('Runs by day', [{ title: 'Day' }, { title: 'Runs', number: true }], days.map((one, n) => [day(one), count(values[n])]).filter((_, n) => values[n]))),
    ] : [])];
  });
  return section;
}
