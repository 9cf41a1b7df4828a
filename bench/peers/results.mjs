// results.mjs -- what a session found: the form of its JSON, medians and spreads, shares of each other, the aims.
//
// A document: { bench, format, made, commit, machine, parameters, servers, runs, complete }. A run is one line of crowd with
// `server`, `scenario`, `round`, `phase` and `steal_share` beside it (what the host took of the machine's processor time during
// the run; null where the system does not say), or `failed` with a sentence instead of figures. Everything else here is
// computed from the runs, so that a report can be made again.
export const FORMAT = 2;
export const PHASES = ['paced', 'flat'];

// What is compared: its column in a run, the phase it is taken from, and whether less is better.
export const METRICS = [
  { key: 'cpu_paced', phase: 'paced', column: 'server_cpu_us_per_delivery', unit: 'µs', title: 'Server CPU per delivery, paced', less: true },
  { key: 'cpu_flat', phase: 'flat', column: 'server_cpu_us_per_delivery', unit: 'µs', title: 'Server CPU per delivery, flat out', less: true },
  { key: 'deliveries', phase: 'flat', column: 'deliveries_per_s', unit: '/s', title: 'Deliveries per second, flat out', less: false },
  { key: 'p50', phase: 'paced', column: 'p50_us', unit: 'µs', title: 'Latency, paced, p50', less: true },
  { key: 'p99', phase: 'paced', column: 'p99_us', unit: 'µs', title: 'Latency, paced, p99', less: true },
  { key: 'p999', phase: 'paced', column: 'p999_us', unit: 'µs', title: 'Latency, paced, p99.9', less: true },
  { key: 'memory', phase: 'paced', column: 'idle_bytes_per_connection', unit: 'B', title: 'Memory per idle connection', less: true },
];

// From here on a run was not the machine's alone.
export const STEAL_SHARE_MAX = 0.05;

export const isStolenFrom = (run) => run.steal_share > STEAL_SHARE_MAX;

// Server CPU per delivery of weir, at most so many times the peer's (issue "the fastest and fairest fan-out").
export const AIMS = { nchan: 0.6, socketio: 0.5, nats: 0.5 };

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  if (sorted.length === 0) return null;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

// Paced, all has to arrive exactly and in time; flat out, at all and exactly.
export function isBehind(run) {
  if (run.failed !== undefined) return false;
  return run.phase === 'paced' ? run.kept_up === false : run.undelivered + run.lost + run.repeated + run.damaged + run.closed > 0;
}

// { median, min, max, rounds } of one metric, and how many of its runs did not keep up or failed.
export function figure(document, metric, scenario, server) {
  const runs = document.runs.filter((run) => run.scenario === scenario && run.server === server && run.phase === metric.phase);
  const values = runs.map((run) => run[metric.column]).filter(isNumber);
  return {
    median: median(values),
    min: values.length ? Math.min(...values) : null,
    max: values.length ? Math.max(...values) : null,
    rounds: runs.length,
    behind: runs.filter(isBehind).length,
    failed: runs.filter((run) => run.failed !== undefined).map((run) => run.failed),
  };
}

export const scenariosOf = (document) => document.parameters.scenarios;

// One server's figure divided by another's, { median, min, max, rounds } of the rounds in which both have one: what the machine
// does meets the servers of a round alike, and a round that was disturbed is one of several.
export function share(document, metric, scenario, server, other) {
  const values = new Map([server, other].map((name) => [name, new Map()]));
  for (const run of document.runs) {
    if (run.scenario === scenario && run.phase === metric.phase && isNumber(run[metric.column])) values.get(run.server)?.set(run.round, run[metric.column]);
  }
  const shares = [...values.get(server)].filter(([round]) => values.get(other).get(round) > 0).map(([round, value]) => value / values.get(other).get(round));
  if (shares.length === 0) return { median: null, min: null, max: null, rounds: 0 };
  return { median: median(shares), min: Math.min(...shares), max: Math.max(...shares), rounds: shares.length };
}

// weir's figure divided by the server's: below 1 weir needs less of it.
export const ratio = (document, metric, scenario, server) => share(document, metric, scenario, 'weir', server).median;

// The same of the bare server that needs least in this case: who is below it does less than the kernel asks of one send() to a
// subscriber. null without one.
export function floorRatio(document, metric, scenario, server) {
  const found = document.servers.filter(({ is_floor }) => is_floor)
    .map(({ name }) => share(document, metric, scenario, name, server).median).filter(isNumber);
  return found.length === 0 ? null : Math.min(...found);
}

const shown = (value) => JSON.stringify(value);

// What is wrong with a document, as sentences; nothing when it can be reported.
export function problems(document) {
  const found = [];
  const must = (holds, sentence) => holds || found.push(sentence);
  if (document?.bench !== 'compare') return ['this is not a result of ./dev bench compare'];
  must(document.format === FORMAT, `its format is ${shown(document.format)}, this version reads ${FORMAT}`);
  for (const name of ['made', 'commit', 'machine', 'parameters', 'servers', 'runs']) must(document[name] !== undefined, `${name} is missing`);
  if (found.length > 0) return found;
  for (const name of ['cores', 'cpu', 'memory_bytes', 'kernel', 'load_before']) must(document.machine[name] !== undefined, `machine.${name} is missing`);
  const servers = new Set(document.servers.map(({ name }) => name));
  const scenarios = new Set(document.parameters.scenarios.map(({ name }) => name));
  for (const server of document.servers) must(typeof server.version === 'string' || server.failed, `server ${server.name} has no version`);
  for (const run of document.runs) {
    const where = `run ${run.server} ${run.scenario} ${run.phase} ${run.round}`;
    must(servers.has(run.server) && scenarios.has(run.scenario) && PHASES.includes(run.phase), `${where}: unknown server, scenario or phase`);
    if (run.failed !== undefined) continue;
    must(typeof run.kept_up === 'boolean', `${where}: kept_up is ${shown(run.kept_up)}`);
    must(run.steal_share === null || (run.steal_share >= 0 && run.steal_share <= 1), `${where}: steal_share is ${shown(run.steal_share)}`);
    for (const name of ['published', 'delivered', 'undelivered', 'lost', 'repeated', 'damaged']) {
      must(Number.isInteger(run[name]) && run[name] >= 0, `${where}: ${name} is ${shown(run[name])}`);
    }
    for (const name of ['p50_us', 'server_cpu_us_per_delivery', 'deliveries_per_s']) {
      must(run.delivered === 0 || run[name] > 0, `${where}: ${name} is ${shown(run[name])}`);
    }
  }
  return found;
}
