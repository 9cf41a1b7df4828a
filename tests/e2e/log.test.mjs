// log.test.mjs -- `weir log` on directories that no broker is using: made here byte by byte, damaged, cut, exported, imported.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { BLOCK, Wal, flipBit, logName, snapshotName, writeSnapshot, zero } from './lib/wal.mjs';
import { runWeir, temporaryDirectory, until, weirProgram } from './lib/weir.mjs';

const log = (...args) => runWeir(['log', ...args]);
const importLines = (directory, input) => runWeir(['log', 'import', directory], { input });
const lines = (text) => text.split('\n').slice(0, -1).map((line) => JSON.parse(line));

// A directory that does not exist yet, removed at the end of the test.
function place(t) {
  const parent = temporaryDirectory();
  t.after(() => fs.rmSync(parent, { recursive: true, force: true }));
  return path.join(parent, 'data');
}

// Two segments of three frames each, with writes of all kinds. `frames` says where each is.
function makeLog(directory) {
  const wal = new Wal(directory);
  wal.append([wal.write('set', 'chat', 'a', 'm1', { text: 'hi' }), wal.write('set', 'chat', 'a', 'm2', [1, 2])]);
  wal.append([wal.write('set', 'chat', 'b', 'm"1', 'ä\n'), wal.write('set', 'x', 'a', 'm1', null)]);
  wal.append([wal.write('event', 'chat', 'a', undefined, { n: 1 }, { type: 'ping' })]);
  wal.startSegment();
  wal.append([wal.write('set', 'chat', 'a', 'm1', { text: 'ho' }, { event: 'update', origin: 0xfedcba9876543210n, request: 77 })]);
  wal.append([wal.write('delete', 'chat', 'a', 'm2')]);
  wal.append([wal.write('set', 'chat', 'a', 'm3', 3)]);
  return wal;
}
const itemsOfLog = [
  { stream: 'chat', group: 'a', item: 'm1', value: { text: 'ho' } },
  { stream: 'chat', group: 'a', item: 'm3', value: 3 },
  { stream: 'chat', group: 'b', item: 'm"1', value: 'ä\n' },
  { stream: 'x', group: 'a', item: 'm1', value: null },
];

test('verify says what a sound log holds, and changes nothing', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const before = fs.readFileSync(wal.file);
  const { code, stdout, stderr } = await log('verify', directory);
  assert.equal(code, 0, stderr);
  assert.equal(stderr, '');
  assert.match(stdout, new RegExp(`${logName(1)} to ${logName(2)}: 8 writes in 6 frames`));
  assert.match(stdout, /frames +1 to 6/);
  assert.match(stdout, new RegExp(`end +${logName(2)}:${wal.offset}`));
  assert.match(stdout, /^sound /m);
  assert.deepEqual(fs.readFileSync(wal.file), before);
  const quiet = await log('verify', '--quiet', directory);
  assert.deepEqual([quiet.code, quiet.output], [0, '']);
});

test('dump prints each record with its place, and filters', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const { code, stdout, stderr } = await log('dump', directory);
  assert.equal(code, 0, stderr);
  const records = lines(stdout);
  assert.equal(records.length, 8);
  assert.deepEqual(records[0], {
    file: logName(1), offset: BLOCK, frame: 1, time: 1700000000001, kind: 'set', event: 'create', stream: 'chat', group: 'a', item: 'm1',
    epoch: 1700000000000000, seq: 1, timestamp: 1700000000002, value: { text: 'hi' },
  });
  assert.equal(records[2].item, 'm"1');
  assert.deepEqual([records[4].kind, records[4].event, records[4].item, records[4].type, records[4].value], ['event', 'event', null, 'ping', { n: 1 }]);
  assert.deepEqual([records[5].event, records[5].origin, records[5].request], ['update', 'fedcba9876543210', 77]);
  assert.deepEqual([records[6].kind, 'value' in records[6], records[6].offset], ['delete', false, wal.frames[4].offset]);
  const some = lines((await log('dump', '--stream=chat', directory, '--group', 'b')).stdout);
  assert.deepEqual(some.map((record) => record.item), ['m"1']);
  assert.deepEqual(lines((await log('dump', directory, '--from', '5')).stdout).map((record) => record.frame), [5, 6]);
});

test('a snapshot is read before the log, and its groups name the items behind them', async (t) => {
  const directory = place(t);
  const wal = new Wal(directory, { segment: 3 });
  const numbers = { epoch: 1700000000000000n, seq: 1, timestamp: 1700000000002 };
  writeSnapshot(directory, {
    number: 3, nextSeq: 1, records: [
      { kind: 'group', stream: 'chat', group: 'a', ...numbers },
      { kind: 'item', step: 0, item: 'm1', value: '{"old":1}', created: 1, modified: 1 },
      { kind: 'group', stream: 'chat', group: 'b', ...numbers },
      { kind: 'item', step: 0, item: 'm2', value: '2', created: 1, modified: 1 },
    ],
  });
  wal.append([wal.write('set', 'chat', 'a', 'm1', { old: 1 }), wal.write('set', 'chat', 'a', 'm4', 4)]);
  fs.writeFileSync(path.join(directory, `${snapshotName(4)}.new`), 'half');
  const verified = await log('verify', directory);
  assert.equal(verified.code, 0, verified.stderr);
  assert.match(verified.stdout, new RegExp(`${snapshotName(3)}: 2 items in 2 groups`));
  assert.match(verified.stdout, new RegExp(`superfluous +${snapshotName(4)}\\.new`));
  const dumped = lines((await log('dump', directory, '--group', 'b')).stdout);
  assert.deepEqual(dumped.map((record) => [record.kind, record.stream, record.group, record.item, record.value]),
    [['group', 'chat', 'b', undefined, undefined], ['item', 'chat', 'b', 'm2', 2]]);
  assert.deepEqual(lines((await log('export', directory)).stdout).map((item) => [item.group, item.item, item.value]),
    [['a', 'm1', { old: 1 }], ['a', 'm4', 4], ['b', 'm2', 2]]);
  // docs/operations.md: what can be read of a snapshot goes into a new log.
  const rescued = (await log('dump', directory)).stdout.split('\n').filter((line) => /^{"file":"snapshot[^{]*"kind":"item"/.test(line));
  const imported = await importLines(`${directory}-new`, rescued.join('\n'));
  assert.equal(imported.code, 0, imported.stderr);
  assert.deepEqual(lines((await log('export', `${directory}-new`)).stdout).map((item) => item.item), ['m1', 'm2']);
});

test('export prints the items as they are at the end, and filters', async (t) => {
  const directory = place(t);
  makeLog(directory);
  const { code, stdout, stderr } = await log('export', directory);
  assert.equal(code, 0, stderr);
  assert.deepEqual(lines(stdout), itemsOfLog);
  assert.deepEqual(lines((await log('export', directory, '--stream', 'x')).stdout), itemsOfLog.slice(3));
  assert.deepEqual(lines((await log('export', directory, '--group=a', '--stream=chat')).stdout), itemsOfLog.slice(0, 2));
});

test('export, import, export gives the same lines', async (t) => {
  const [from, to] = [place(t), place(t)];
  makeLog(from);
  const first = await log('export', from);
  const imported = await importLines(to, first.stdout);
  assert.equal(imported.code, 0, imported.stderr);
  assert.match(imported.stderr, /4 items in 3 groups/);
  assert.equal(imported.stdout, '');
  assert.deepEqual(fs.readdirSync(to).filter((name) => name.endsWith('.new')), []);
  const verified = await log('verify', to);
  assert.equal(verified.code, 0, verified.stderr);
  assert.match(verified.stdout, /4 items in 3 groups/);
  const second = await log('export', to);
  assert.equal(second.stdout, first.stdout);
});

test('import takes lines in any order, and many of them', async (t) => {
  const directory = place(t);
  const items = Array.from({ length: 5000 }, (_, index) => ({ stream: `s${index % 3}`, group: `g${index % 7}`, item: `i${index}`, value: { index, text: 'x'.repeat(index % 400) } }));
  const imported = await importLines(directory, items.map((item) => `${JSON.stringify(item)}\n`).join(''));
  assert.equal(imported.code, 0, imported.stderr);
  const exported = lines((await log('export', directory)).stdout);
  const key = (item) => item.item;
  assert.deepEqual([...exported].sort((a, b) => key(a).localeCompare(key(b))), [...items].sort((a, b) => key(a).localeCompare(key(b))));
  const group = exported.filter((item) => item.stream === 's1' && item.group === 'g1').map((item) => item.value.index);
  assert.deepEqual(group, [...group].sort((a, b) => a - b), 'the order of lines is the order of items');
  const empty = place(t);
  assert.equal((await importLines(empty, '\n\n')).code, 0);
  assert.equal((await log('export', empty)).output, '');
});

test('a line that is no item is named, and nothing is left behind', async (t) => {
  const directory = place(t);
  const good = JSON.stringify(itemsOfLog[0]);
  const cases = [
    ['{"stream":"s"', 2, /JSON/],
    ['{"stream":"s","group":"g","item":"i"}', 2, /`value` is missing/],
    ['{"stream":"s","group":5,"item":"i","value":1}', 2, /`group` is not a string/],
    [`{"stream":"${'x'.repeat(4097)}","group":"g","item":"i","value":1}`, 2, /`stream`.*4096/],
    [`${good}`, 2, /earlier line/],
  ];
  for (const [line, number, sentence] of cases) {
    const { code, stderr } = await importLines(directory, `${good}\n${line}\n${good}\n`);
    assert.equal(code, 1, line);
    assert.match(stderr, new RegExp(`line ${number}: `), line);
    assert.match(stderr, sentence);
    assert.ok(!fs.existsSync(directory), line);
  }
});

test('import refuses a directory that has a log, before it reads a line', async (t) => {
  const directory = place(t);
  makeLog(directory);
  const before = fs.readdirSync(directory);
  const { code, stderr } = await importLines(directory, 'nonsense\n');
  assert.equal(code, 1);
  assert.match(stderr, /there is a log in .* already/);
  assert.deepEqual(fs.readdirSync(directory).filter((name) => name !== 'lock'), before);
});

test('a changed bit in the middle is found and named; the cut there is said, asked for, and leaves a sound log', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const hit = wal.frames[1];
  flipBit(hit.file, hit.offset + 120);
  const verified = await log('verify', directory);
  assert.equal(verified.code, 1);
  assert.match(verified.stderr, new RegExp(`${hit.name}`));
  assert.match(verified.stderr, new RegExp(`\\b${hit.offset}\\b`));
  assert.match(verified.stderr, /weir log/);
  const dumped = await log('dump', directory);
  assert.equal(dumped.code, 1);
  assert.equal(lines(dumped.stdout).length, 2, 'what is before the damage');
  const exported = await log('export', directory);
  assert.deepEqual([exported.code, exported.stdout], [1, '']);

  const before = fs.readdirSync(directory).map((name) => [name, fs.readFileSync(path.join(directory, name)).toString('latin1')]);
  const asked = await log('repair', directory, '--cut-at', `${hit.number}:${hit.offset}`);
  assert.equal(asked.code, 1);
  assert.match(asked.stdout, new RegExp(`cutting +${hit.name} at ${hit.offset}, and removing 1 later segment`));
  assert.match(asked.stdout, /lost +4 writes in 4 frames/);
  assert.match(asked.stdout, /unreadable +4\.0 KiB/);
  assert.match(asked.stderr, /nothing was changed.*--yes/);
  assert.deepEqual(fs.readdirSync(directory).map((name) => [name, fs.readFileSync(path.join(directory, name)).toString('latin1')]), before);

  const cut = await log('repair', directory, '--cut-at', `${hit.name}:${hit.offset}`, '--yes');
  assert.equal(cut.code, 0, cut.stderr);
  const again = await log('verify', directory);
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stdout, /2 writes in 1 frames?/);
  assert.deepEqual(lines((await log('export', directory)).stdout).map((item) => item.item), ['m1', 'm2']);
});

// On a terminal of its own (script(1)), typing `answer`.
function repairOnTerminal(directory, cut, answer) {
  return new Promise((resolve) => {
    const child = spawn('script', ['-qec', `"$WEIR" log repair "$DIRECTORY" --cut-at ${cut}`, '/dev/null'],
      { env: { ...process.env, WEIR: weirProgram, DIRECTORY: directory }, stdio: ['pipe', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.on('data', (chunk) => {
      output += chunk;
      if (/Type yes: $/.test(output)) child.stdin.write(answer);
    });
    child.once('close', (code) => {
      child.stdin.destroy();
      resolve({ code, output });
    });
  });
}

test('on a terminal repair asks, and takes nothing but yes for one', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const cut = `1:${wal.frames[2].offset}`;
  const no = await repairOnTerminal(directory, cut, 'y\n');
  assert.equal(no.code, 1, no.output);
  assert.match(no.output, /lost +4 writes in 4 frames[^]*Type yes: [^]*nothing was changed/);
  assert.match((await log('verify', directory)).stdout, /8 writes/);
  const yes = await repairOnTerminal(directory, cut, 'yes\n');
  assert.equal(yes.code, 0, yes.output);
  assert.match((await log('verify', directory)).stdout, /4 writes in 2 frames/);
});

test('a segment whose header is damaged can be given up as a whole', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  flipBit(wal.file, 20);
  const verified = await log('verify', directory);
  assert.equal(verified.code, 1);
  assert.match(verified.stderr, new RegExp(`${logName(2)} offset 0: .*--cut-at 2:0`));
  const cut = await log('repair', directory, '--cut-at', '2:0', '--yes');
  assert.equal(cut.code, 0, cut.stderr);
  assert.match(cut.stdout, new RegExp(`removing +${logName(2)}\n.*no write that can be read\n.*unreadable +16\\.0 KiB`, 's'));
  assert.match(cut.stdout, /5 writes in 3 frames/);
  assert.ok(!fs.existsSync(wal.file));
  assert.equal((await log('verify', directory)).code, 0);
  const all = await log('repair', directory, '--cut-at', '1:0', '--yes');
  assert.equal(all.code, 0, all.stderr);
  assert.match(all.stdout, /empty +no file of a log is there/);
});

test('an interrupted last write is told and is not damage', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const torn = wal.append([wal.write('set', 'chat', 'a', 'big', 'x'.repeat(20000))]);
  zero(torn.file, torn.offset + 8192, torn.bytes - 8192);
  for (const command of ['verify', 'dump', 'export']) {
    const { code, stderr } = await log(command, directory);
    assert.equal(code, 0, stderr);
    assert.match(stderr, new RegExp(`${torn.name}:${torn.offset}, was interrupted`));
  }
  assert.deepEqual(lines((await log('export', directory)).stdout), itemsOfLog);
});

test('places that cannot be cut at are refused with the reason', async (t) => {
  const directory = place(t);
  const wal = makeLog(directory);
  const big = wal.append([wal.write('set', 'chat', 'a', 'big', 'x'.repeat(20000))]);
  const cases = [
    ['9:4096', /no segment 9/],
    ['1:4097', /not the start of a frame/],
    ['1:1073741824', /behind the end/],
    [`2:${big.offset + BLOCK}`, /./],
  ];
  const before = fs.readFileSync(wal.file);
  for (const [cut, sentence] of cases) {
    const { code, stderr } = await log('repair', directory, '--cut-at', cut, '--yes');
    assert.equal(code, 1, cut);
    assert.match(stderr, sentence);
  }
  assert.deepEqual(fs.readFileSync(wal.file), before);
  for (const cut of ['', '7', '7:', ':4096', '0:4096', 'x:1', '7:4096x']) {
    assert.equal((await log('repair', directory, '--cut-at', cut)).code, 2, cut);
  }
});

test('a directory in use is left alone, with the remedy', async (t) => {
  const directory = place(t);
  makeLog(directory);
  const holder = spawn('flock', ['--exclusive', path.join(directory, 'lock'), 'sh', '-c', 'echo held; read x'], { stdio: ['pipe', 'pipe', 'inherit'] });
  let held = '';
  holder.stdout.on('data', (chunk) => (held += chunk));
  await until(() => held !== '', 'the lock');
  for (const args of [['verify'], ['dump'], ['export'], ['repair', '--cut-at', '1:4096', '--yes']]) {
    const { code, stdout, stderr } = await log(args[0], directory, ...args.slice(1));
    assert.deepEqual([code, stdout], [1, ''], args[0]);
    assert.match(stderr, /a broker is using .*; stop it, or copy the directory and use the copy/);
  }
  const closed = new Promise((resolve) => holder.once('close', resolve));
  holder.stdin.end('\n');
  await closed;
  assert.equal((await log('verify', directory)).code, 0);
});

test('a wrong command line is said with what is right, and a directory without a log is not touched', async (t) => {
  const parent = temporaryDirectory();
  t.after(() => fs.rmSync(parent, { recursive: true, force: true }));
  for (const args of [[], ['burn'], ['verify'], ['verify', parent, parent], ['verify', parent, '--stream', 's'], ['dump', parent, '--from', 'x'],
    ['dump', parent, '--stream'], ['repair', parent], ['export', parent, '--yes']]) {
    const { code, stderr, stdout } = await log(...args);
    assert.deepEqual([code, stdout], [2, ''], args.join(' '));
    assert.match(stderr, /^weir: /);
  }
  const none = await log('verify', parent);
  assert.equal(none.code, 1);
  assert.match(none.stderr, /no log in/);
  assert.deepEqual(fs.readdirSync(parent), []);
  const missing = await log('verify', path.join(parent, 'nowhere'));
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /no directory .*nowhere/);
  const config = path.join(parent, 'weir.yaml');
  fs.writeFileSync(config, `weir:\n  data_dir: ${path.join(parent, 'data')}\n`);
  makeLog(path.join(parent, 'data'));
  assert.equal((await log('verify', '--config', config)).code, 0);
  fs.writeFileSync(config, 'weir:\n  gateways: 1\n');
  const memory = await log('verify', '--config', config);
  assert.equal(memory.code, 1);
  assert.match(memory.stderr, /no data_dir/);
  const help = await runWeir(['log', '--help']);
  assert.equal(help.code, 0);
  for (const word of ['verify', 'dump', 'export', 'import', 'repair']) assert.match(help.stdout, new RegExp(`weir log ${word}`));
});
