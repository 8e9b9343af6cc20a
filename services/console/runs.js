// The newest runs; one that is opened shows its steps on a line of time, and a running one as it goes on.
import { get, stream } from './api.js';
import { failure, fill, make, nothing, part, table } from './dom.js';
import { count, dates, duration, moment } from './format.js';

const LIVE = new Set(['PENDING', 'RUNNING', 'CANCELLING']);
const KINDS = { COMPLETED: 'good', FAILED: 'bad', CANCELLED: 'off', SKIPPED: 'off' };

export const chip = (status) => make('span', { class: `chip ${KINDS[status] || 'live'}` }, status.toLowerCase());
const amount = (run) => `${count(run.rows_published)} rows${Number(run.rows_quarantined) ? `, ${count(run.rows_quarantined)} in quarantine` : ''}`;
const took = (one) => (one.start_time ? ((one.end_time ? Date.parse(one.end_time) : Date.now()) - Date.parse(one.start_time)) / 1000 : NaN);

export async function runs(tenant) {
  const { section, body } = part('runs', 'Runs');
  await fill(body, async () => {
    const { runs: found, next_page_token: more } = await get(`pipelines/runs/${tenant}`, { page_size: 15 });
    if (!found.length) return nothing('No runs yet.', 'Start one through the API or the command line, or let a schedule do it.');
    return [
      make('ul', { class: 'runs' }, found.map((run) => entry(tenant, run))),
      more ? make('p', { class: 'note' }, `The newest ${found.length}; the API lists them all.`) : null,
    ].filter(Boolean);
  });
  return section;
}

function entry(tenant, run) {
  const id = `run-${run.pipeline_logging_id}`;
  const inside = make('div', { id, class: 'inside', hidden: true });
  const status = make('span', {}, chip(run.status));
  const rows = make('span', { class: 'number' }, amount(run));
  const time = make('span', { class: 'number' }, duration(took(run)));
  const button = make('button', { type: 'button', class: 'run', 'aria-expanded': 'false', 'aria-controls': id },
    status, make('span', { class: 'two' }, make('span', {}, `${run.provider}/${run.domain}/${run.template}`), make('span', { class: 'note' }, `for ${dates(run.start_date, run.end_date)}`)),
    make('span', { class: 'wide-only note' }, moment(run.start_time)), rows, time);
  const show = (now, percent) => {
    status.replaceChildren(chip(now.status));
    rows.textContent = amount(now);
    time.textContent = duration(took(now));
    inside.replaceChildren(...timeline(now, percent));
  };
  async function open() {
    try {
      const path = `pipelines/runs/${tenant}/${run.pipeline_logging_id}`;
      const now = await get(path);
      show(now);
      if (!LIVE.has(now.status)) return;
      for await (const progress of stream(`${path}:watch`)) {
        if (inside.hidden || !inside.isConnected) break;
        show(progress.run, progress.percent);
      }
    } catch (error) {
      if (error.name !== 'AbortError') inside.replaceChildren(failure(error, open));
    }
  }
  button.addEventListener('click', () => {
    inside.hidden = !inside.hidden;
    button.setAttribute('aria-expanded', String(!inside.hidden));
    if (!inside.hidden) {
      inside.replaceChildren(make('div', { class: 'waiting small', 'aria-hidden': 'true' }));
      open();
    }
  });
  return make('li', {}, button, inside);
}

function timeline(run, percent) {
  const steps = run.steps.filter((step) => step.start_time);
  const begin = Math.min(...[run.start_time, ...steps.map((step) => step.start_time)].filter(Boolean).map(Date.parse));
  const end = Math.max(...[run.end_time, ...steps.map((step) => step.end_time)].filter(Boolean).map(Date.parse), LIVE.has(run.status) ? Date.now() : begin + 1);
  const share = (time) => ((time ? Date.parse(time) : Date.now()) - begin) / (end - begin) * 100;
  const rows = run.steps.map((step) => [step.step, chip(step.status),
    step.start_time ? make('span', { class: 'lane', 'aria-hidden': 'true' }, make('span', {
      class: KINDS[step.status] || 'live',
      style: { left: `${share(step.start_time)}%`, width: `${Math.max(0.6, share(step.end_time) - share(step.start_time))}%` },
    })) : '', duration(took(step)), Number(step.rows) ? count(step.rows) : '–']);
  return [
    run.error ? make('p', { class: 'why' }, make('strong', {}, run.error.message), ' ', make('code', {}, run.error.reason)) : null,
    LIVE.has(run.status) && percent !== undefined ? make('progress', { max: 100, value: percent, 'aria-label': 'Progress' }) : null,
    rows.length ? table(`Steps of run ${run.pipeline_logging_id}`, [{ title: 'Step' }, { title: 'Status' }, { title: make('span', { class: 'unseen' }, 'Time line'), narrow: false },
      { title: 'Took', number: true }, { title: 'Rows', number: true }], rows) : make('p', { class: 'note' }, 'No step has begun.'),
    make('p', { class: 'note' }, 'Run ', make('code', {}, run.pipeline_logging_id), run.attempt > 1 ? `, attempt ${run.attempt}` : '', ` · began ${moment(run.start_time)}`,
      run.outcome === 'NO_DATA' ? ' · the source had no rows' : run.outcome === 'SUPERSEDED' ? ' · a later run had published already' : ''),
  ].filter(Boolean);
}
