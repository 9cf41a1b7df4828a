// report.mjs -- a session's document as one page that needs nothing else, and the short forms of it for docs/ and README.md.
import fs from 'node:fs';
import path from 'node:path';
import { AIMS, METRICS, STEAL_SHARE_MAX, figure, floorRatio, isBehind, isStolenFrom, median, ratio, share } from './results.mjs';
import { DARK, LIGHT, STYLE, WIDTH, bars, dots, escape, figureSvg, format } from './plot.mjs';

const metricOf = (key) => METRICS.find((metric) => metric.key === key);
const bytesName = (bytes) => (bytes >= 1024 ? `${bytes / 1024} KiB` : `${bytes} B`);
function times(value) {
  if (value === null) return '–';
  if (value >= 10) return String(Math.round(value));
  if (value >= 0.995) return value.toFixed(1);
  return value >= 0.0995 ? value.toFixed(2) : String(Number(value.toPrecision(1)));
}

const isFlat = (metric) => metric.phase === 'flat';

// [{ name, title, cases }] with the scenarios of equal groups together, one case a message size.
function sections(document) {
  const found = new Map();
  for (const scenario of document.parameters.scenarios) {
    const section = found.get(scenario.group) ?? { name: scenario.group, title: scenario.title, rate: scenario.rate, groups: scenario.groups, in_flight: scenario.in_flight, cases: [] };
    section.cases.push(scenario);
    found.set(scenario.group, section);
  }
  return [...found.values()];
}

// Memory of a connection does not depend on the size of messages that have not come yet: one figure for all sizes.
function memoryFigure(document, section, server) {
  const all = section.cases.map((one) => figure(document, metricOf('memory'), one.name, server));
  const known = all.filter((one) => one.median !== null);
  return {
    median: median(known.map((one) => one.median)), behind: 0, failed: all.flatMap((one) => one.failed), rounds: all.reduce((sum, one) => sum + one.rounds, 0),
    min: known.length ? Math.min(...known.map((one) => one.min)) : null, max: known.length ? Math.max(...known.map((one) => one.max)) : null,
  };
}

// It is measured where there are many subscribers.
const hasMemory = (document, section) => document.servers.some(({ name }) => memoryFigure(document, section, name).median !== null);

// ---- one section ----

function barRows(document, section, key) {
  return document.servers.map(({ name, plot_label: label }) => ({
    label, ours: name === 'weir',
    entries: key === 'memory' ? [memoryFigure(document, section, name)] : section.cases.map((one) => figure(document, metricOf(key), one.name, name)),
  }));
}

function dotRows(document, section) {
  const keys = ['p50', 'p99', 'p999'];
  return document.servers.map(({ name, plot_label: label }) => ({
    label, ours: name === 'weir',
    lines: section.cases.map((one) => {
      const figures = keys.map((key) => figure(document, metricOf(key), one.name, name));
      return { name: bytesName(one.bytes), values: figures.map((each) => each.median), behind: figures[0].behind > 0, failed: figures[0].failed.length > 0 };
    }),
  }));
}

// Between the rounds; empty where they agree.
const rangeText = (each, unit) => (each.max > each.min ? `${format(each.min, unit)} … ${format(each.max, unit)}` : '');

function spreadText(each, unit) {
  if (each.median === null) return each.failed.length ? 'failed' : '–';
  const range = rangeText(each, unit) && ` <small>${escape(rangeText(each, unit))}</small>`;
  return `${escape(format(each.median, unit))}${each.behind ? ` <em title="did not keep up in ${each.behind} of ${each.rounds} rounds">*</em>` : ''}${range}`;
}

const table = (caption, head, rows) => `<table><caption>${escape(caption)}</caption><thead><tr>${head.map((cell) => `<th scope="col">${escape(cell)}</th>`).join('')}</tr></thead><tbody>
${rows.map(([first, ...rest]) => `<tr><th scope="row">${escape(first)}</th>${rest.map((cell) => `<td>${cell}</td>`).join('')}</tr>`).join('\n')}
</tbody></table>`;

function barTable(document, rows, section, key) {
  const head = ['', ...(key === 'memory' ? ['per connection'] : section.cases.map((one) => bytesName(one.bytes)))];
  return table('medians, and the spread of the rounds', head, rows.map((row) => [row.label, ...row.entries.map((each) => spreadText(each, metricOf(key).unit))]));
}

function dotTable(document, section) {
  const head = ['', ...section.cases.flatMap((one) => ['p50', 'p99', 'p99.9'].map((name) => `${name}, ${bytesName(one.bytes)}`))];
  return table('medians, and the spread of the rounds', head, document.servers.map(({ name, label }) => [
    label, ...section.cases.flatMap((one) => ['p50', 'p99', 'p999'].map((key) => spreadText(figure(document, metricOf(key), one.name, name), 'µs'))),
  ]));
}

function card(id, title, hint, plot, description, tableText) {
  return `<figure><figcaption><h3>${escape(title)}</h3><p>${escape(hint)}</p></figcaption>
${figureSvg(plot, title, description, id)}
<details><summary>Figures</summary><div class="scroll">${tableText}</div></details></figure>`;
}

const paceOf = (section) => `${section.rate.toLocaleString('en')} messages/s${section.groups > 1 ? ' over all groups' : ''}`;

function barCard(document, section, key) {
  const metric = metricOf(key);
  const rows = barRows(document, section, key);
  const less = metric.less ? 'less is better' : 'more is better';
  const pace = { cpu_paced: paceOf(section), cpu_flat: `${section.in_flight} messages in flight`, deliveries: `${section.in_flight} messages in flight`, memory: 'no messages yet' }[key];
  const plot = bars({ rows, series: key === 'memory' ? [''] : section.cases.map((one) => bytesName(one.bytes)), unit: metric.unit });
  const description = rows.map((row) => `${row.label}: ${row.entries.map((each) => format(each.median, metric.unit)).join(', ')}`).join('; ');
  return card(`${key}-${section.name}`, metric.title.replace(/, (paced|flat out)$/, isFlat(metric) ? ', flat out' : ', paced'), `${pace}; ${less}`, plot, description, barTable(document, rows, section, key));
}

function latencyCard(document, section) {
  const rows = dotRows(document, section);
  const plot = dots({ rows, names: ['p50', 'p99', 'p99.9'], unit: 'µs' });
  const description = rows.map((row) => `${row.label}: ${row.lines.map((one) => `${one.name} ${one.values.map((value) => format(value, 'µs')).join(' / ')}`).join(', ')}`).join('; ');
  return card(`latency-${section.name}`, 'Latency, paced', `${paceOf(section)}; from when a message was due to when a subscriber has read it; log scale`, plot, description, dotTable(document, section));
}

// With an aim, what the bare servers' share is stands below: an aim below that asks for less than one send() to a subscriber.
function ratioCell(document, metric, scenario, server) {
  const { median: value, min, max } = share(document, metric, scenario, 'weir', server);
  const aim = metric.column === 'server_cpu_us_per_delivery' ? AIMS[server] : undefined;
  const rounds = value !== null && max > min ? `; rounds: ${times(min)} to ${times(max)}` : '';
  if (value === null || aim === undefined) return `<span title="weir's share${rounds}">${times(value)}</span>`;
  const reached = value <= aim;
  const bare = floorRatio(document, metric, scenario, server);
  const below = bare === null ? '' : `<small>bare ${times(bare)}</small>`;
  const behind = figure(document, metric, scenario, 'weir').behind > 0 ? ' <em title="weir did not keep up in some round: what comes late comes in heaps, and cheaper">*</em>' : '';
  return `<span class="${reached ? 'good' : 'bad'}" title="aim ${aim}: ${reached ? 'reached' : 'missed'}${rounds}">${times(value)} ${reached ? '✓' : '✗'}</span>${behind}${below}`;
}

const aimWords = (document) => Object.entries(AIMS).map(([server, aim]) => `${aim} of ${document.servers.find(({ name }) => name === server)?.label ?? server}`).join(', ');

const RATIO_NAMES = { cpu_paced: 'CPU, paced', cpu_flat: 'CPU, flat out', deliveries: 'deliveries/s', p99: 'p99', memory: 'memory' };

function ratioTable(document, section, cases) {
  const keys = Object.keys(RATIO_NAMES).filter((key) => key !== 'memory' || hasMemory(document, section));
  const others = document.servers.filter(({ name }) => name !== 'weir');
  const rows = others.flatMap(({ name, plot_label: label }) => cases.map((one, index) => [
    index === 0 ? label : '', bytesName(one.bytes), ...keys.map((key) => ratioCell(document, metricOf(key), one.name, name)),
  ]));
  return `<div class="scroll">${table(`aims for CPU: ${aimWords(document)}`, ['weir ÷ …', '', ...keys.map((key) => RATIO_NAMES[key])], rows)}</div>`;
}

// Beside the plot of memory where there is one; else over the whole width, a table for each size.
function ratioCard(document, section) {
  const isWide = !hasMemory(document, section);
  const tables = isWide ? section.cases.map((one) => ratioTable(document, section, [one])) : [ratioTable(document, section, section.cases)];
  return `<figure class="ratios${isWide ? ' wide-card' : ''}"><figcaption><h3>weir as a share of the others</h3><p>medians of the rounds' shares; below 1 weir needs less of it; deliveries/s: above 1 weir does more; bare: the cheaper bare server's share of the same</p></figcaption><div class="tables">${tables.join('')}</div></figure>`;
}

function sectionText(document, section) {
  return `<section><h2>${escape(section.title)}</h2><div class="cards">
${barCard(document, section, 'cpu_paced')}
${barCard(document, section, 'cpu_flat')}
${latencyCard(document, section)}
${barCard(document, section, 'deliveries')}
${hasMemory(document, section) ? barCard(document, section, 'memory') : ''}
${ratioCard(document, section)}
</div></section>`;
}

// ---- the page ----

const PAGE_STYLE = `
  :root { color-scheme: light dark; ${LIGHT} }
  @media (prefers-color-scheme: dark) { :root { ${DARK} } }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
  h1 { font-size: 28px; margin: 0 0 4px; letter-spacing: -.01em; }
  h2 { font-size: 20px; margin: 44px 0 14px; }
  h3 { font-size: 15px; margin: 0; }
  p { margin: 0 0 10px; max-width: 76ch; }
  figcaption p, .lead, small, caption, dt { color: var(--soft); }
  figcaption p { font-size: 13px; margin: 0 0 8px; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; align-items: start; }
  figure { margin: 0; padding: 16px 18px 12px; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; min-width: 0; }
  svg { display: block; width: 100%; height: auto; }
  details { margin-top: 6px; border-top: 1px solid var(--grid); padding-top: 6px; font-size: 13px; }
  summary { cursor: pointer; color: var(--soft); }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; margin: 4px 0 10px; }
  caption { text-align: left; font-size: 12px; padding: 2px 0; }
  th, td { text-align: right; padding: 4px 7px; border-bottom: 1px solid var(--grid); vertical-align: top; }
  th:first-child { text-align: left; padding-left: 0; font-weight: 500; white-space: nowrap; }
  thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
  .ratios td { white-space: nowrap; }
  .ratios th, .ratios td { padding-left: 4px; padding-right: 4px; }
  .wide-card { grid-column: 1 / -1; }
  .wide-card .tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 40px; }
  td small { white-space: nowrap; display: block; }
  .good { color: var(--good); } .bad { color: var(--warn); } em { color: var(--warn); font-style: normal; font-weight: 600; }
  .wide td { text-align: left; } .wide thead th { text-align: left; }
  .wide ul { margin: 0; padding-left: 16px; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 14px 0 0; font-size: 14px; }
  dd { margin: 0; }
  .small { font-size: 13px; padding-left: 18px; }
  .aims { margin: 16px 0 0; padding-left: 18px; font-size: 14px; max-width: 100ch; }
  code { font-size: 13px; }
  ${STYLE}`;

// What was measured beside other work is told with it.
export function busyWords({ machine }) {
  const [load] = machine.load_before;
  return load > 0.3 * machine.cores ? `The machine was busy with other work (load ${load.toFixed(1)} on ${machine.cores} cores before): ratios of the same round say something, the figures themselves little.` : '';
}

const percent = (value) => `${Number((100 * value).toPrecision(2))} %`;

// A virtual machine's processors are the host's, which lends them to others as well.
export function stealWords({ runs }) {
  const known = runs.map((run) => run.steal_share).filter((value) => typeof value === 'number');
  if (known.length === 0) return 'not known';
  const flagged = runs.filter(isStolenFrom).length;
  const most = `${percent(median(known))} of a run's processor time in the median, ${percent(Math.max(...known))} at most`;
  return flagged === 0 ? most : `${most}; more than ${percent(STEAL_SHARE_MAX)} in ${flagged} of ${known.length} runs (named below): latencies of those are the host's as well`;
}

function facts(document) {
  const { machine, parameters } = document;
  const gib = `${Math.round(machine.memory_bytes / 2 ** 30)} GiB`;
  const load = (list) => list.map((value) => value.toFixed(2)).join(' ');
  return [
    ['Made', `${document.made.slice(0, 16).replace('T', ' ')} UTC, weir ${document.commit || 'of an unknown commit'}${document.complete ? '' : '; the session was stopped before its end'}`],
    ['Machine', `${machine.cores} × ${machine.cpu}, ${gib}, ${machine.system}, Linux ${machine.kernel}`],
    ['Load', `${load(machine.load_before)} before${machine.load_after ? `, ${load(machine.load_after)} after (the session's own among it)` : ''}. ${busyWords(document)}`],
    ['Taken by the host', stealWords(document)],
    ['Rounds', `${parameters.rounds} of all servers in turn; ${parameters.seconds.paced} s paced and ${parameters.seconds.flat} s flat out, each after ${parameters.warmup} s of warm-up`],
    ['Command', '<code>./dev bench compare</code>'],
  ];
}

function serverTable(document) {
  const rows = document.servers.map((server) => [server.label, escape(server.version) + (server.failed ? ` <em>${escape(server.failed)}</em>` : ''), escape(server.processes),
    `<ul>${server.settings.map(([name, why]) => `<li><code>${escape(name)}</code>: ${escape(why)}</li>`).join('')}</ul>`]);
  return `<div class="wide scroll">${table('versions as the programs say them; settings that differ from the defaults', ['', 'version', 'processes', 'settings'], rows)}</div>`;
}

function faultOf(document, run) {
  if (run.failed !== undefined) return `failed: ${run.failed}`;
  if (run.lost + run.repeated + run.damaged + run.closed > 0) return `${run.lost} messages lost, ${run.repeated} repeated, ${run.damaged} damaged, ${run.closed} connections closed`;
  if (run.undelivered > 0) return `${run.undelivered} deliveries were still missing ${document.parameters.drain} s after the last message`;
  return isBehind(run) ? `did not keep up: the last delivery came ${format(run.max_us, 'µs')} late` : null;
}

function remarks(document) {
  const label = (name) => document.servers.find((server) => server.name === name).label;
  const found = new Map(); // rounds of the same kind are one line
  for (const run of document.runs) {
    const stolen = isStolenFrom(run) ? `the host took ${percent(run.steal_share)} of the processor time` : null;
    const what = [faultOf(document, run), stolen].filter(Boolean).join(', ');
    if (what === '') continue;
    const key = `${label(run.server)}, ${run.scenario.replace('-', ', ')} B, ${run.phase === 'flat' ? 'flat out' : 'paced'}`;
    found.set(key, [...(found.get(key) ?? []), `round ${run.round}: ${what}`]);
  }
  if (found.size === 0) return '<p>Nothing: every message of every run arrived, in order, whole and in time.</p>';
  return `<ul class="small">${[...found].map(([key, list]) => `<li>${escape(key)}: ${escape(list.join('; '))}</li>`).join('')}</ul>`;
}

const METHOD = `
<p>One load generator for all, <code>build/bin/crowd</code>: subscribers in processes of their own that check every message's number and
bytes; a publisher that paces by the clock (a message that is sent late counts from when it was due) or keeps a number of messages in flight (flat out).
Server CPU is user and system time of all of a server's processes, divided by the messages that arrived. Memory is what the proportional
resident size of all of a server's processes grew by while its subscribers came; sockets' buffers in the kernel are not in it. Bars are
medians of the rounds, thin lines their spread; * marks what did not keep up in some round: paced, the last delivery came more
than a second late, or anything was missing; flat out, something was missing at the end.</p>
<p>Load and server share the machine's cores, so flat out the faster server also waits for the subscribers who read; CPU per delivery does
not depend on that. What is not equal: weir stores each message as an item's new value and sends it in an envelope (stream, group, item,
number, time: some 200 bytes more), so that subscribers can resume; nchan keeps the last 64; the others keep nothing. weir, nchan,
socket.io and ws speak WebSocket, as browsers do; nats and redis a TCP protocol of their own. Publishing is each server's usual way:
WebSocket for weir, ws and socket.io, HTTP POST for nchan, PUB and PUBLISH; its cost is part of the figures, most of it with one
subscriber a group. TCP_NODELAY is set by all of them.</p>
<p>The bare servers are nothing to use: no handshake, no state, one thread, and frames of weir's size that the publisher has made. What they
cost is the kernel's part, so a share below theirs is to be had only by fewer calls than one send() for each subscriber and message,
or for each subscriber and turn. A share is the median of the rounds' shares: what disturbs a round meets all servers of it.</p>`;

export function page(document) {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>weir beside others</title><style>${PAGE_STYLE}</style></head>
<body><main>
<h1>weir beside others</h1>
<p class="lead">What it costs to bring one message to one subscriber: ${document.servers.map(({ label }) => escape(label)).join(', ')}, measured in turn on one machine.</p>
<dl>${facts(document).map(([name, text]) => `<dt>${name}</dt><dd>${name === 'Command' ? text : escape(text)}</dd>`).join('')}</dl>
<ul class="aims">${aimLines(document).map((line) => `<li>${escape(line.slice(2))}</li>`).join('')}</ul>
${sections(document).map((section) => sectionText(document, section)).join('\n')}
<section><h2>What went wrong</h2>${remarks(document)}</section>
<section><h2>Servers</h2>${serverTable(document)}</section>
<section><h2>Method</h2>${METHOD}</section>
</main></body></html>
`;
}

// ---- docs/ and README.md ----

// CPU and deliveries of every section in one picture.
export function overview(document) {
  const gap = 36;
  const parts = [];
  let y = 0;
  for (const section of sections(document)) {
    parts.push(`<text class="strong" style="font-size:15px" x="0" y="${y + 18}">${escape(section.title)}</text>`);
    y += 30;
    const plots = ['cpu_paced', 'deliveries'].map((key) => bars({ rows: barRows(document, section, key), series: section.cases.map((one) => bytesName(one.bytes)), unit: metricOf(key).unit }));
    ['server CPU per delivery, paced: less is better', 'deliveries per second, flat out: more is better'].forEach((text, index) => {
      parts.push(`<g transform="translate(${index * (WIDTH + gap)} ${y})"><text class="soft" x="0" y="10">${text}</text><g transform="translate(0 16)">${plots[index].body}</g></g>`);
    });
    y += 16 + Math.max(...plots.map((plot) => plot.height)) + 22;
  }
  const width = 2 * WIDTH + gap;
  const pad = 16;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${-pad} ${-pad} ${width + 2 * pad} ${Math.round(y - 22 + 2 * pad)}" role="img" aria-labelledby="t"><title id="t">CPU per delivery and deliveries per second of weir and others; the table in README.md has the figures</title><style>
  svg { ${LIGHT} background: var(--paper); }
  @media (prefers-color-scheme: dark) { svg { ${DARK} } }${STYLE}
</style><rect x="${-pad}" y="${-pad}" width="${width + 2 * pad}" height="${Math.round(y - 22 + 2 * pad)}" style="fill: var(--paper)"/>
${parts.join('\n')}
</svg>
`;
}

// Medians, least and largest of the rounds, for docs/.
export function summary(document) {
  const results = document.parameters.scenarios.flatMap((scenario) => document.servers.map(({ name }) => {
    const figures = METRICS.map((metric) => [metric.key, figure(document, metric, scenario.name, name)]);
    return {
      scenario: scenario.name, server: name, ...Object.fromEntries(figures.map(([key, each]) => [key, each.median])),
      spread: Object.fromEntries(figures.map(([key, { min, max }]) => [key, [min, max]])),
      kept_up: document.runs.every((run) => run.scenario !== scenario.name || run.server !== name || run.phase !== 'paced' || run.kept_up === true),
    };
  }));
  const { made, commit, machine, parameters } = document;
  const stolen_from = { runs: document.runs.filter(isStolenFrom).length, of: document.runs.length };
  return { made, commit, machine, stolen_from, rounds: parameters.rounds, servers: document.servers.map(({ name, version }) => ({ name, version })), results };
}

// A line for each result, so that a change of it reads as one.
function summaryText(document) {
  const { results, ...head } = summary(document);
  return `${JSON.stringify(head, null, 1).slice(0, -2)},\n "results": [\n  ${results.map((one) => JSON.stringify(one)).join(',\n  ')}\n ]\n}\n`;
}

function rangeOf(values) {
  const [least, most] = [times(Math.min(...values)), times(Math.max(...values))];
  return least === most ? least : `${least} to ${most}`;
}

// weir's share of a server's CPU in every scenario, paced and flat out, and the bare server's share of the same.
function cpuShares(document, server) {
  return document.parameters.scenarios.flatMap((scenario) => ['cpu_paced', 'cpu_flat'].map((key) => ({
    value: ratio(document, metricOf(key), scenario.name, server),
    bare: floorRatio(document, metricOf(key), scenario.name, server),
    isBehind: figure(document, metricOf(key), scenario.name, 'weir').behind > 0,
    where: `${scenario.group}, ${bytesName(scenario.bytes)}, ${key === 'cpu_flat' ? 'flat out' : 'paced'}`,
  })));
}

function missedText(shares, aim) {
  const missed = shares.filter(({ value }) => value > aim).sort((a, b) => b.value - a.value);
  if (missed.length === 0) return 'reached everywhere';
  const beyond = missed.filter(({ bare }) => bare !== null && bare > aim).length;
  const list = missed.map(({ where, value, bare }) => `${where}: ${times(value)}${bare === null ? '' : `, bare ${times(bare)}`}`);
  const isCompared = missed.some(({ bare }) => bare !== null);
  return `missed in ${missed.length} of ${shares.length} cases${isCompared ? `, in ${beyond} of which the aim is below the bare server's own share` : ''} (${list.join('; ')})`;
}

// Cases that say less than the others: without figures of both, or with a weir that was late (in heaps, which are cheaper).
function doubtText(all) {
  const without = all.filter(({ value }) => value === null).length;
  const behind = all.filter((one) => one.value !== null && one.isBehind).length;
  return `${without > 0 ? `; ${without} of ${all.length} cases have no figure` : ''}${behind > 0 ? `; weir itself did not keep up in some round of ${behind}` : ''}`;
}

function aimLine(document, { name, label, is_floor }) {
  const all = cpuShares(document, name);
  const shares = all.filter(({ value }) => value !== null);
  if (shares.length === 0) return null;
  const weir = `- ${label}: weir's CPU per delivery is ${rangeOf(shares.map(({ value }) => value))} of it`;
  if (is_floor) return `${weir}${doubtText(all)}.`;
  const bare = shares.map((one) => one.bare).filter((value) => value !== null);
  const beside = bare.length === 0 ? '' : `, the bare server's ${rangeOf(bare)}`;
  return `${weir}${beside}; aim ${AIMS[name]}: ${missedText(shares, AIMS[name])}${doubtText(all)}.`;
}

// A line for each aim, and for what is below all of them.
function aimLines(document) {
  return document.servers.filter(({ name, is_floor }) => name in AIMS || is_floor).map((server) => aimLine(document, server)).filter(Boolean);
}

const BEGIN = '<!-- compare: written by ./dev bench compare --docs -->';
const END = '<!-- compare: end -->';

const BARE_WORDS = `The bare servers have no handshake, no state, and get frames of weir's size ready-made: what they cost is the kernel's part. Beside
an aim stands the share of the cheaper one in the same case.

`;

export function readmeText(document) {
  const small = document.parameters.scenarios.filter(({ bytes }) => bytes === document.parameters.bytes[0]);
  const first = small[0].name;
  const cell = (key, scenario, server) => {
    const each = figure(document, metricOf(key), scenario, server);
    return each.median === null ? (each.failed.length ? 'failed' : '–') : format(each.median, metricOf(key).unit) + (each.behind ? ' \\*' : '');
  };
  const head = ['', ...small.map(({ group }) => `CPU per delivery, ${group.replace('x', ' × ')}`), 'deliveries/s', 'p50 / p99', 'idle connection'];
  const title = ({ name, label, is_floor, version }) => (name === 'weir' ? '**weir**' : is_floor ? label : `${label} ${version}`);
  const late = (name) => {
    const each = figure(document, metricOf('p99'), first, name);
    return rangeText(each, 'µs') && ` (${rangeText(each, 'µs')})`;
  };
  const rows = document.servers.map(({ name, ...rest }) => [
    title({ name, ...rest }), ...small.map((scenario) => cell('cpu_paced', scenario.name, name)),
    cell('deliveries', first, name), `${cell('p50', first, name)} / ${cell('p99', first, name)}${late(name)}`, format(memoryFigure(document, sections(document).at(Math.min(1, sections(document).length - 1)), name).median, 'B'),
  ]);
  const { machine } = document;
  const behind = document.runs.some((run) => isBehind(run)) ? '\n\\* did not keep up in some round.\n' : '';
  return `${BEGIN}
![CPU per delivery and deliveries per second, weir and others](docs/compare.svg)

${bytesName(document.parameters.bytes[0])} messages, groups × subscribers of each; CPU and latency paced, deliveries/s flat out with ${small[0].group.replace('x', ' × ')}. Medians of ${document.parameters.rounds} round${document.parameters.rounds === 1 ? '' : 's'}${document.parameters.rounds === 1 ? '' : ' (p99 also from the best to the worst)'}, ${machine.cores} cores
(${machine.cpu}), ${document.made.slice(0, 10)}, commit ${document.commit.replace('+', ' and changes')}; all figures are in [docs/compare.json](docs/compare.json).
Taken by the host: ${stealWords(document).replace(' (named below)', '')}. ${busyWords(document)}

| ${head.join(' | ')} |
|${head.map(() => '---|').join('')}
${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}
${behind}
${document.servers.some(({ is_floor }) => is_floor) ? BARE_WORDS : ''}${aimLines(document).join('\n')}
${END}`;
}

// Writes docs/compare.svg, docs/compare.json and README.md's part; the files.
export function publish(document, root) {
  const readme = path.join(root, 'README.md');
  const text = fs.readFileSync(readme, 'utf8');
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`README.md has no place for the comparison (${BEGIN} … ${END})`);
  const files = [path.join(root, 'docs/compare.svg'), path.join(root, 'docs/compare.json'), readme];
  fs.writeFileSync(files[0], overview(document));
  fs.writeFileSync(files[1], summaryText(document));
  fs.writeFileSync(readme, text.slice(0, begin) + readmeText(document) + text.slice(end + END.length));
  return files;
}
