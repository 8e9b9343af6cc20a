// What runs by itself, and when next.
import { list } from './api.js';
import { fill, make, nothing, part, table } from './dom.js';
import { away, moment } from './format.js';

export async function schedules(tenant) {
  const { section, body } = part('schedules', 'Schedules');
  await fill(body, async () => {
    const found = await list(`scheduler/customer/${tenant}/pipelines`, 'pipelines');
    if (!found.length) return nothing('Nothing is scheduled.', 'A schedule runs a pipeline by itself, in any time zone.');
    const rows = found.map((one) => {
      const pipeline = `${one.provider}/${one.domain}/${one.template}`;
      return [
        make('span', { class: 'two' }, make('span', {}, one.name || pipeline), make('span', { class: 'note' }, one.name ? pipeline : '')),
        make('span', { class: 'two' }, make('code', {}, one.cron), make('span', { class: 'note' }, one.timezone)),
        one.is_active ? make('span', { class: 'two' }, make('span', {}, away(one.next_run_time)), make('span', { class: 'note' }, moment(one.next_run_time))) : '–',
        make('span', { class: `chip ${one.is_active ? 'good' : 'off'}` }, one.is_active ? 'active' : 'paused'),
      ];
    });
    return table('Schedules', [{ title: 'Schedule' }, { title: 'When' }, { title: 'Next' }, { title: 'State' }], rows);
  });
  return section;
}
