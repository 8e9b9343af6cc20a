// How much of what was checked passes, by standard.
import { list } from './api.js';
import { bar, fill, make, nothing, part, table } from './dom.js';
import { count, percent } from './format.js';

export async function compliance(tenant) {
  const { section, body } = part('compliance', 'Compliance');
  await fill(body, async () => {
    let found;
    try {
      found = await list(`compliance/${tenant}`, 'compliance', { group_by: 'standard' });
    } catch (error) {
      if (error.status !== 501) throw error;
      return nothing('Compliance is not served here yet.', 'This deployment collects costs only.');
    }
    if (!found.length) return nothing('No findings yet.', 'They appear here once a compliance pipeline has run.');
    const rows = [...found].sort((a, b) => Number(a.pass_rate || 2) - Number(b.pass_rate || 2)).map((one) => {
      const rate = one.pass_rate === '' ? null : Number(one.pass_rate);
      const kind = rate === null ? '' : rate >= 0.95 ? 'good' : rate >= 0.8 ? 'fair' : 'bad';
      return [one.dimensions.standard || '(no standard)', bar(rate ?? 0, kind), rate === null ? '–' : percent(rate), count(one.passed), count(one.failed), count(one.muted + one.exempt)];
    });
    return table('Pass rate by standard', [{ title: 'Standard' }, { title: make('span', { class: 'unseen' }, 'Share') }, { title: 'Pass rate', number: true },
      { title: 'Passed', number: true, narrow: false }, { title: 'Open', number: true }, { title: 'Muted or exempt', number: true, narrow: false }], rows);
  });
  return section;
}
