// compare.test.mjs -- `./dev bench compare` works: every server is started, measured and stopped, and the report is made.
//
// Figures of so short a run mean nothing; that every server delivered exactly what was published does.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { FORMAT, METRICS, PHASES, figure, floorRatio, problems, ratio } from '../../bench/peers/results.mjs';
import { overview, page, publish, readmeText, summary } from '../../bench/peers/report.mjs';
import { jobsOf } from '../../bench/peers/compare.mjs';
import { SERVERS } from '../../bench/peers/servers.mjs';
import { binDir, delay, temporaryDirectory, until } from './lib/weir.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
// Not lib's word for it: ./dev test sets the sanitizers' options for all programs.
const skip = /[/](asan|tsan)[/]bin$/.test(binDir) && 'the other servers are the same, and figures of sanitized binaries mean nothing';
const program = path.join(root, 'bench/peers/compare.mjs');

// Runs compare.mjs to its end; `meanwhile` is given the process. What it starts has `temporary` in its environment.
async function compare(args, { temporary = os.tmpdir(), meanwhile = () => {} } = {}) {
  const child = spawn(process.execPath, [program, ...args], { env: { ...process.env, TMPDIR: temporary }, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (chunk) => (said += chunk));
  const ended = new Promise((resolve) => child.once('close', (code) => resolve(code)));
  await meanwhile(child, () => said);
  return { code: await ended, said };
}

function processesWith(variable) {
  return fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).filter((pid) => {
    try {
      return fs.readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(variable);
    } catch {
      return false; // it has ended
    }
  });
}

const withDirectory = async (use) => {
  const directory = temporaryDirectory();
  try {
    await use(directory);
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
};

// A document of a session that needed no session.
function madeUp({ rounds = 3, change = (run) => run } = {}) {
  const scenarios = [128, 1024].map((bytes) => ({ name: `1x1000-${bytes}`, group: '1x1000', groups: 1, subscribers: 1000, rate: 100, in_flight: 64, bytes, title: '1 group, 1,000 subscribers' }));
  const runs = [];
  for (let round = 1; round <= rounds; round += 1) {
    for (const { name: scenario } of scenarios) {
      for (const [index, { name: server }] of SERVERS.entries()) {
        for (const phase of PHASES) {
          runs.push(change({
            server, scenario, round, phase, published: 100, delivered: 100000, undelivered: 0, lost: 0, repeated: 0, damaged: 0, closed: 0, kept_up: true, steal_share: 0.01,
            server_cpu_us_per_delivery: (index + 1) * round, deliveries_per_s: 1e6 / (index + 1), p50_us: 100 * (index + 1), p99_us: 300, p999_us: 900, max_us: 1000, idle_bytes_per_connection: 1000 * (index + 1),
          }));
        }
      }
    }
  }
  return {
    bench: 'compare', format: FORMAT, made: '2026-11-22T00:00:00.000Z', commit: 'abc', plan: 'full', complete: true, seconds: 1,
    machine: { cores: 2, cpu: 'a <CPU> & more', memory_bytes: 2 ** 34, kernel: '6.1', system: 'Debian', load_before: [0, 0, 0], load_after: [1, 1, 1] },
    parameters: { rounds, seconds: { paced: 1, flat: 1 }, warmup: 1, drain: 1, bytes: [128, 1024], scenarios },
    servers: SERVERS.map(({ name, label, plot_label = label, is_floor = false, processes, settings }) => ({ name, label, plot_label, is_floor, processes, settings, version: '1.0' })), runs,
  };
}

test('every server of the comparison delivers what is published, and the report names each', { skip, timeout: 900000 }, async () => {
  await withDirectory(async (directory) => {
    const { code, said } = await compare(['--smoke', '--out', directory]);
    assert.equal(code, 0, said);
    const document = JSON.parse(fs.readFileSync(path.join(directory, 'compare.json'), 'utf8'));
    assert.deepEqual(problems(document), []);
    assert.equal(document.complete, true);
    assert.equal(document.runs.length, SERVERS.length * PHASES.length);
    for (const run of document.runs) {
      assert.equal(run.failed, undefined, `${run.server} ${run.phase}`);
      const { undelivered, lost, repeated, damaged, closed, refused } = run;
      assert.deepEqual({ undelivered, lost, repeated, damaged, closed, refused }, { undelivered: 0, lost: 0, repeated: 0, damaged: 0, closed: 0, refused: 0 }, `${run.server} ${run.phase}`);
      if (run.phase === 'paced') assert.equal(run.delivered, run.published * 10, `${run.server}: two groups of ten`);
      // In so short a run whoever stands still for a moment may have delivered nothing by the clock.
      if (run.delivered > 0) assert.ok(run.server_cpu_us_per_delivery > 0.01 && run.server_cpu_us_per_delivery < 5000, `${run.server} ${run.phase}: ${run.server_cpu_us_per_delivery} µs`);
    }
    for (const { name } of SERVERS) assert.ok(document.runs.some(({ server, delivered }) => server === name && delivered > 0), `${name} has figures`);
    const html = fs.readFileSync(path.join(directory, 'compare.html'), 'utf8');
    for (const { label, version } of document.servers) assert.ok(html.includes(label) && html.includes(version), label);
    const again = await compare(['--report', path.join(directory, 'compare.json')]);
    assert.equal(again.code, 0, again.said);
    assert.equal(fs.readFileSync(path.join(directory, 'compare.html'), 'utf8'), html, 'the report of the same figures is the same');
  });
});

test('a session that is stopped keeps what it found and leaves no process', { skip, timeout: 300000 }, async () => {
  await withDirectory(async (directory) => {
    const meanwhile = async (child, said) => {
      while (child.exitCode === null && !said().includes('[2/100')) await delay(100);
      child.kill('SIGINT');
    };
    const { code, said } = await compare(['--smoke', '--rounds', '50', '--servers', 'redis', '--out', directory], { temporary: directory, meanwhile });
    assert.equal(code, 130, said);
    const document = JSON.parse(fs.readFileSync(path.join(directory, 'compare.json'), 'utf8'));
    assert.deepEqual(problems(document), []);
    assert.equal(document.complete, false);
    assert.ok(document.runs.length >= 4);
    assert.deepEqual(fs.readdirSync(directory).sort(), ['compare.html', 'compare.json']);
    await until(() => processesWith(`TMPDIR=${directory}`).length === 0, 'no process is left');
  });
});

test('medians, spreads and ratios are those of the runs', () => {
  const document = madeUp();
  const cpu = METRICS.find(({ key }) => key === 'cpu_paced');
  assert.deepEqual(figure(document, cpu, '1x1000-128', 'nchan'), { median: 4, min: 2, max: 6, rounds: 3, behind: 0, failed: [] });
  assert.equal(summary(document).results.find(({ server, scenario }) => server === 'nats' && scenario === '1x1000-128').cpu_paced, 6);
  assert.match(readmeText(document), /nginx \+ nchan: weir's CPU per delivery is 0\.50 of it, the bare server's 3\.5; aim 0\.6: reached everywhere/);
});

test('neither a slow round nor one in which the machine stood still changes a ratio', () => {
  const slow = [1, 9, 1, 9, 5]; // times in each round, for all servers
  const paced = METRICS.find(({ key }) => key === 'cpu_paced');
  const document = madeUp({
    rounds: 5,
    change: (run) => {
      const disturbed = run.round === 5 && run.server === 'weir';
      const cost = slow[run.round - 1] * (run.server === 'weir' ? 1 : 3) * (disturbed ? 4 : 1);
      return { ...run, server_cpu_us_per_delivery: cost, p99_us: disturbed ? 300000 : 300 };
    },
  });
  assert.equal(ratio(document, paced, '1x1000-128', 'nats'), 1 / 3);
  assert.match(readmeText(document), /\| 100 µs \/ 300 µs \(300 µs … 300 ms\) \|/);
});

test('an aim that a bare server misses too is told from one that weir alone misses', () => {
  // Of nchan's 2 a delivery the cheaper bare server takes 1.6, weir 1.8; flat out 0.2 and 1.8.
  const costs = { weir: () => 1.8, f1: () => 4, f2: ({ phase }) => (phase === 'flat' ? 0.2 : 1.6), nchan: () => 2 };
  const document = madeUp({ change: (run) => ({ ...run, server_cpu_us_per_delivery: costs[run.server]?.(run) ?? 100 }) });
  const [paced, flat] = ['cpu_paced', 'cpu_flat'].map((key) => METRICS.find((metric) => metric.key === key));
  assert.equal(floorRatio(document, paced, '1x1000-128', 'nchan'), 0.8);
  assert.equal(floorRatio(document, flat, '1x1000-128', 'nchan'), 0.1);
  const text = readmeText(document);
  assert.match(text, /missed in 4 of 4 cases, in 2 of which the aim is below the bare server's own share \(.*1x1000, 128 B, paced: 0\.90, bare 0\.80/);
  assert.match(text, /socket\.io: .* aim 0\.5: reached everywhere/);
  assert.match(page(document), /0\.90 ✗<\/span><small>bare 0\.80<\/small>/);
  const without = { ...document, servers: document.servers.filter(({ is_floor }) => !is_floor), runs: document.runs.filter(({ server }) => !/^f[12]$/.test(server)) };
  assert.match(readmeText(without), /missed in 4 of 4 cases \(1x1000, 128 B, paced: 0\.90; /);
});

test('cases in which weir was late, or somebody has no figure, are told with the aims', () => {
  const late = madeUp({ change: (run) => (run.server === 'weir' && run.phase === 'paced' && run.scenario === '1x1000-1024' && run.round === 2 ? { ...run, kept_up: false } : run) });
  assert.match(readmeText(late), /nats-server: .*; weir itself did not keep up in some round of 1\.\n/);
  const dead = madeUp({ change: (run) => (run.server === 'nats' && run.phase === 'flat' ? { server: run.server, scenario: run.scenario, round: run.round, phase: run.phase, failed: 'it died' } : run) });
  assert.match(readmeText(dead), /nats-server: .* reached everywhere; 2 of 4 cases have no figure\.\n/);
  assert.doesNotMatch(readmeText(madeUp()), /did not keep up|no figure/);
});

test('runs from which the host took processor time are named', () => {
  const document = madeUp({ change: (run) => (run.server === 'redis' && run.round === 2 ? { ...run, steal_share: 0.09 } : run) });
  assert.deepEqual(problems(document), []);
  assert.match(page(document), /more than 5 % in 4 of 96 runs/);
  assert.match(page(document), /redis pub\/sub, 1x1000, 128 B, paced: round 2: the host took 9 % of the processor time/);
  assert.match(readmeText(document), /1 % of a run's processor time in the median, 9 % at most; more than 5 % in 4 of 96 runs/);
  document.runs[0].steal_share = 7;
  assert.equal(problems(document).length, 1);
});

test('every server is first in turn, and follows different ones', () => {
  const servers = ['a', 'b', 'c', 'd'];
  const jobs = jobsOf(['x', 'y'], servers, { rounds: 4, bytes: [128, 1024] });
  assert.equal(jobs.length, 4 * 2 * 2 * servers.length);
  const cases = Array.from({ length: jobs.length / servers.length }, (_, index) => jobs.slice(index * servers.length, (index + 1) * servers.length).map(({ server }) => server));
  for (const one of cases) assert.deepEqual([...one].sort(), servers);
  assert.deepEqual([...new Set(cases.map(([first]) => first))].sort(), servers);
  const before = (server) => new Set(cases.map((one) => one[one.indexOf(server) - 1]).filter(Boolean));
  for (const server of servers) assert.equal(before(server).size, 2, server);
});

test('what failed or did not keep up is in the report, and does not end it', () => {
  const document = madeUp({
    change: (run) => {
      if (run.server === 'ws') return { server: run.server, scenario: run.scenario, round: run.round, phase: run.phase, failed: 'it <died>' };
      return run.server === 'redis' && run.phase === 'paced' ? { ...run, kept_up: false } : run;
    },
  });
  assert.deepEqual(problems(document), []);
  const html = page(document);
  assert.match(html, /ws, 1x1000, 128 B, paced: round 1: failed: it &lt;died&gt;/);
  assert.match(html, /redis pub\/sub, 1x1000, 128 B, paced: round 1: did not keep up/);
  assert.doesNotMatch(html, /NaN|undefined|Infinity/);
});

test('the report needs nothing from elsewhere, and its plots have titles and tables', () => {
  const html = page(madeUp());
  assert.doesNotMatch(html, /(src|href)=|url\(|@import|<script/);
  const plots = html.split('<svg').length - 1;
  assert.ok(plots >= 4);
  assert.equal(html.split('<title id=').length - 1, plots);
  assert.equal(html.split('<details>').length - 1, plots);
  assert.ok(html.includes('a &lt;CPU&gt; &amp; more'));
});

test('the short form goes to docs and the marked part of the README alone', async () => {
  await withDirectory(async (directory) => {
    const document = madeUp();
    const [, begin] = /^(<!-- .*)\n/.exec(readmeText(document));
    fs.mkdirSync(path.join(directory, 'docs'));
    fs.writeFileSync(path.join(directory, 'README.md'), `before\n${begin}\nold\n<!-- compare: end -->\nafter\n`);
    publish(document, directory);
    const readme = fs.readFileSync(path.join(directory, 'README.md'), 'utf8');
    assert.ok(readme.startsWith('before\n') && readme.endsWith('\nafter\n') && !readme.includes('old'));
    assert.ok(fs.statSync(path.join(directory, 'docs/compare.svg')).size < 40 * 1024);
    assert.equal(overview(document), fs.readFileSync(path.join(directory, 'docs/compare.svg'), 'utf8'));
    assert.ok(fs.readFileSync(path.join(root, 'README.md'), 'utf8').includes(begin), 'README.md has the place for it');
  });
});

test('a file that is no result is refused with the reason', async () => {
  await withDirectory(async (directory) => {
    for (const [text, reason] of [['{', 'cannot be read'], ['{"bench":"fanout"}', 'not a result'], [JSON.stringify({ ...madeUp(), format: 99 }), 'format is 99']]) {
      const file = path.join(directory, 'some.json');
      fs.writeFileSync(file, text);
      const { code, said } = await compare(['--report', file]);
      assert.equal(code, 2);
      assert.ok(said.includes(reason), said);
    }
  });
});
