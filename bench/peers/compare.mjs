// compare.mjs -- weir beside other servers in one session: rounds of all of them in turn, one after the other, so that what the
// machine does meanwhile meets them all. `./dev bench compare`; the load is build/bin/crowd, each server is in servers.mjs.
//
// In every round each server is started for each scenario, and crowd measures it twice: paced (latency, CPU per delivery; what
// memory grows by while subscribers come) and flat out (deliveries per second, CPU per delivery). A server that loses messages,
// is too slow or dies is a result. The JSON and the report are written after every server, so that a session that is stopped
// has what it found; Ctrl-C stops everything that was started.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Program, processorTicks, stealShare, stopAll } from './processes.mjs';
import { FORMAT, isStolenFrom, problems } from './results.mjs';
import { page, publish } from './report.mjs';
import { SERVERS, binDirectory } from './servers.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');

export const USAGE = `./dev bench compare [OPTION...]   some fifteen minutes where nothing else runs
  --rounds N          of all servers in turn (default 5; quick 1)
  --quick             one round: some three minutes
  --smoke             every server once with 20 subscribers: does the comparison work?
  --servers A,B       of ${SERVERS.map(({ name }) => name).join(', ')}; weir is always among them,
                      f1 and f2 are bare servers: what a send() costs, and no more
  --scenarios A,B     of 1x1000, 1x10000, 1000x1 (groups x subscribers of each)
  --out DIR           where the JSON and the report go (default build/bench)
  --docs              write docs/compare.svg, docs/compare.json and the table in README.md as well
  --report FILE.json  no session: make the report of an earlier one again
`;

// groups x subscribers; rate: messages a second when paced, for 100,000 deliveries a second, or 2,000 publications; in_flight:
// messages that are not yet with all of their group, flat out (for 10,000 subscribers fewer: a slow server would still be at
// the warm-up's when the time is over).
const SCENARIOS = [
  { name: '1x1000', groups: 1, subscribers: 1000, rate: 100, in_flight: 64, title: '1 group, 1,000 subscribers' },
  { name: '1x10000', groups: 1, subscribers: 10000, rate: 10, in_flight: 8, title: '1 group, 10,000 subscribers' },
  { name: '1000x1', groups: 1000, subscribers: 1000, rate: 2000, in_flight: 64, title: '1,000 groups, 1 subscriber each' },
];
const SMOKE = [{ name: '2x10', groups: 2, subscribers: 20, rate: 100, in_flight: 8, title: '2 groups, 10 subscribers each' }];
// More and shorter rounds rather than fewer long ones: a moment in which the machine stands still spoils one round of five.
// seconds: measured paced, and flat out, where there are many more deliveries.
const PLANS = {
  full: { rounds: 5, seconds: { paced: 0.9, flat: 0.5 }, warmup: 0.2, drain: 2, bytes: [128, 1024] },
  quick: { rounds: 1, seconds: { paced: 0.9, flat: 0.5 }, warmup: 0.2, drain: 2, bytes: [128, 1024] },
  smoke: { rounds: 1, seconds: { paced: 0.4, flat: 0.3 }, warmup: 0.1, drain: 30, bytes: [128] },
};

function fail(sentence) {
  process.stderr.write(`compare: ${sentence}\n`);
  process.exit(2);
}

const say = (text) => process.stderr.write(`${text}\n`);

export function readOptions(args) {
  const options = { plan: 'full', out: path.join(root, 'build/bench'), servers: null, scenarios: null, rounds: null, docs: false, report: null };
  const rest = [...args];
  const value = (name) => rest.shift() ?? fail(`${name} needs a value`);
  while (rest.length > 0) {
    const name = rest.shift();
    if (name === '--quick' || name === '--smoke') options.plan = name.slice(2);
    else if (name === '--docs') options.docs = true;
    else if (name === '--rounds') options.rounds = Number(value(name));
    else if (name === '--servers' || name === '--scenarios') options[name.slice(2)] = value(name).split(',');
    else if (name === '--out' || name === '--report') options[name.slice(2)] = path.resolve(value(name));
    else if (name === '--help' || name === '-h') (process.stdout.write(USAGE), process.exit(0));
    else fail(`there is no option ${name}\n${USAGE}`);
  }
  if (options.rounds !== null && !(Number.isInteger(options.rounds) && options.rounds > 0 && options.rounds <= 100)) fail('--rounds is a number from 1 to 100');
  return options;
}

function chosen(all, names, what) {
  for (const name of names ?? []) if (!all.some((one) => one.name === name)) fail(`there is no ${what} ${name}: ${all.map((one) => one.name).join(', ')}`);
  return names === null ? all : all.filter(({ name }) => name === 'weir' || names.includes(name));
}

function git(...args) {
  try {
    return execFileSync('git', ['-C', root, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return '';
  }
}

function machine() {
  const [cpu] = os.cpus();
  const [, system] = /^PRETTY_NAME="(.*)"$/m.exec(fs.existsSync('/etc/os-release') ? fs.readFileSync('/etc/os-release', 'utf8') : '') ?? [];
  return {
    cores: os.cpus().length, cpu: cpu?.model ?? 'unknown', memory_bytes: os.totalmem(), kernel: os.release(), system: system ?? os.platform(),
    load_before: os.loadavg().map((load) => Math.round(load * 100) / 100),
  };
}

// A temporary directory for the time of `use`.
async function withScratch(use) {
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'weir-compare-'));
  try {
    return await use(scratch);
  } finally {
    fs.rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
  }
}

// The end of what was said; of a Node program that died, the line that names the error.
function sentence(error) {
  const lines = String(error.message ?? error).trim().split('\n');
  return (lines.findLast((line) => /^\w*Error\b[^:]*: /.test(line)) ?? lines.slice(-3).join(' / ')).slice(0, 400);
}

// Runs crowd against a server that is running; its figures, or { failed }.
async function measure(server, place, plan, { scenario, bytes, phase }) {
  const rate = phase === 'paced' ? ['--rate', scenario.rate] : ['--rate', 0, '--in-flight', scenario.in_flight];
  const seconds = plan.seconds[phase];
  const before = processorTicks();
  const crowd = Program.start(path.join(binDirectory, 'crowd'), [
    '--protocol', server.protocol ?? server.name, '--port', place.port, ...(place.publishPort ? ['--publish-port', place.publishPort] : []),
    '--groups', scenario.groups, '--subscribers', scenario.subscribers, '--bytes', bytes, ...rate,
    '--seconds', seconds, '--warmup', plan.warmup, '--drain', plan.drain, '--server-pids', place.program.pids().join(','),
  ].map(String));
  const limit = setTimeout(() => crowd.stop(1000), (seconds + plan.warmup + plan.drain + 45) * 1000);
  place.program.exited.then(() => crowd.stop(1000)); // it would wait for a server that has died
  const { code } = await crowd.exited;
  clearTimeout(limit);
  const line = crowd.said.split('\n').find((text) => text.startsWith('{'));
  if (code === 0 && line !== undefined) return { ...JSON.parse(line), steal_share: stealShare(before, processorTicks()) };
  const last = place.program.exit === null ? '' : ` (the server has ended: ${JSON.stringify(place.program.exit)})`;
  return { failed: `${sentence({ message: crowd.said || 'crowd did not end in time' })}${last}` };
}

// One server in one scenario: started, measured paced and flat out, stopped.
async function runServer(server, plan, machineCores, job) {
  return withScratch(async (scratch) => {
    const runs = [];
    let place = null;
    try {
      place = await server.start({ cores: machineCores, scratch });
      for (const phase of ['paced', 'flat']) {
        const result = await measure(server, place, plan, { ...job, phase });
        runs.push({ server: server.name, scenario: `${job.scenario.name}-${job.bytes}`, round: job.round, phase, ...result });
      }
    } catch (error) {
      const done = new Set(runs.map(({ phase }) => phase));
      for (const phase of ['paced', 'flat'].filter((name) => !done.has(name))) {
        runs.push({ server: server.name, scenario: `${job.scenario.name}-${job.bytes}`, round: job.round, phase, failed: sentence(error) });
      }
    } finally {
      await place?.program.stop();
    }
    return runs;
  });
}

const short = (value, figures = 3) => (Number.isFinite(value) ? Number(value.toPrecision(figures)).toLocaleString('en') : '–');

function progressLine(runs) {
  const [paced, flat] = runs;
  const words = [];
  if (paced.failed) words.push(`failed: ${paced.failed}`);
  else words.push(`${short(paced.server_cpu_us_per_delivery)} µs/delivery`, `p99 ${short(paced.p99_us / 1000)} ms`);
  if (flat.failed) words.push(`flat out failed: ${flat.failed}`);
  else words.push(`flat out ${short(flat.server_cpu_us_per_delivery)} µs, ${short(flat.deliveries_per_s)}/s`);
  if (paced.kept_up === false) words.push('did not keep up');
  if (runs.some(isStolenFrom)) words.push('the host took processor time');
  return words.join(', ');
}

function minutes(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
}

// The session's work, in the order in which it is done. Who is first goes round, and every other round goes the other way, so
// that nobody always follows the same.
export function jobsOf(scenarios, servers, plan) {
  const cases = scenarios.flatMap((scenario) => plan.bytes.map((bytes) => ({ scenario, bytes })));
  const jobs = [];
  for (let round = 1; round <= plan.rounds; round += 1) {
    for (const [index, one] of cases.entries()) {
      const turned = servers.map((_, at) => servers[(round + index + at) % servers.length]);
      for (const server of round % 2 === 0 ? turned.reverse() : turned) jobs.push({ round, ...one, server });
    }
  }
  return jobs;
}

function save(document, out) {
  fs.mkdirSync(out, { recursive: true });
  const files = ['json', 'html'].map((kind) => path.join(out, `compare.${kind}`));
  const texts = [`${JSON.stringify(document, null, 1)}\n`, page(document)];
  files.forEach((file, index) => {
    fs.writeFileSync(`${file}.new`, texts[index]);
    fs.renameSync(`${file}.new`, file);
  });
  return files;
}

async function describe(servers, cores) {
  const found = [];
  for (const server of servers) {
    const { name, label, plot_label = label, is_floor = false, processes, settings } = server;
    const described = { name, label, plot_label, is_floor, processes, settings };
    try {
      found.push({ ...described, version: await withScratch((scratch) => server.version({ cores, scratch })) });
    } catch (error) {
      found.push({ ...described, version: 'unknown', failed: sentence(error) });
    }
  }
  return found;
}

async function session(options) {
  const plan = { ...PLANS[options.plan], ...(options.rounds ? { rounds: options.rounds } : {}) };
  const servers = chosen(SERVERS, options.servers, 'server');
  const scenarios = chosen(options.plan === 'smoke' ? SMOKE : SCENARIOS, options.scenarios, 'scenario');
  const here = machine();
  const started = Date.now();
  let isStopped = false;
  const stop = () => {
    if (isStopped) return; // it takes seconds at most
    isStopped = true;
    say('compare: stopping what was started; results so far are kept');
    stopAll();
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);
  const document = {
    bench: 'compare', format: FORMAT, made: new Date().toISOString(), commit: git('rev-parse', '--short=12', 'HEAD') + (git('status', '--porcelain') ? '+' : ''),
    plan: options.plan, complete: false, machine: here,
    parameters: { ...plan, scenarios: scenarios.flatMap((one) => plan.bytes.map((bytes) => ({ ...one, name: `${one.name}-${bytes}`, group: one.name, bytes }))) },
    servers: await describe(servers, here.cores), runs: [],
  };
  for (const { label, version, failed } of document.servers) say(`compare: ${label} ${version}${failed ? ` (${failed})` : ''}`);
  const jobs = jobsOf(scenarios, servers, plan);
  let files = [];
  for (const [index, job] of jobs.entries()) {
    if (isStopped) break;
    const runs = await runServer(job.server, plan, here.cores, job);
    if (isStopped) break;
    document.runs.push(...runs);
    document.complete = index + 1 === jobs.length;
    document.seconds = Math.round((Date.now() - started) / 100) / 10;
    document.machine.load_after = os.loadavg().map((load) => Math.round(load * 100) / 100);
    files = save(document, options.out);
    const left = (document.seconds / (index + 1)) * (jobs.length - index - 1);
    say(`[${index + 1}/${jobs.length}, ${minutes(left)} left] round ${job.round}, ${job.scenario.name}, ${job.bytes} B, ${job.server.label}: ${progressLine(runs)}`);
  }
  await stopAll();
  if (isStopped && files.length === 0) process.exit(130);
  return { document, files, code: isStopped ? 130 : 0 };
}

function readDocument(file) {
  let document;
  try {
    document = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch (error) {
    fail(`${file} cannot be read: ${error.message}`);
  }
  const found = problems(document);
  if (found.length > 0) fail(`${file} cannot be reported: ${found.slice(0, 5).join('; ')}`);
  return document;
}

async function main(args) {
  const options = readOptions(args);
  let document;
  let code = 0;
  if (options.report !== null) {
    document = readDocument(options.report);
    const file = options.report.replace(/\.json$/, '') + '.html';
    fs.writeFileSync(file, page(document));
    say(`compare: ${file}`);
  } else {
    const result = await session(options);
    ({ document, code } = result);
    const found = problems(document);
    for (const sentenceOf of found) say(`compare: ${sentenceOf}`);
    if (found.length > 0) code = code || 1;
    for (const file of result.files) say(`compare: ${file}`);
  }
  if (options.docs && code === 0) for (const file of publish(document, root)) say(`compare: ${file}`);
  process.exit(code);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv.slice(2));
