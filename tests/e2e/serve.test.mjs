// serve.test.mjs -- the weir command: serve and its refusals, trigger, tail, health and metrics, a clean stop.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { RawSocket } from './lib/frames.mjs';
import { Weir, freePort, runWeir, temporaryDirectory, until, weirProgram, withWeir } from './lib/weir.mjs';

test('a port in use is refused with the port and what to do about it', async () => {
  const server = net.createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  const run = temporaryDirectory();
  for (const name of ['stream_port', 'worker_port']) {
    const other = name === 'stream_port' ? 'worker_port' : 'stream_port';
    const { code, output } = await runWeir(['serve', '--set', `run_dir=${run}`, '--set', `${name}=${port}`, '--set', `${other}=0`,
      '--set', 'stream_host=127.0.0.1', '--set', 'admin=false', '--set', 'store_bytes=64MiB']);
    assert.ok(code > 0, `exit ${code}\n${output}`);
    assert.match(output, new RegExp(`\\b${port}\\b`));
    assert.match(output, /in use|already/i);
  }
  server.close();
  fs.rmSync(run, { recursive: true, force: true });
});

test('two weirs do not share a port, although sockets could', async () => {
  await withWeir({}, async (weir) => {
    const run = temporaryDirectory();
    const { code, output } = await runWeir(['serve', '--set', `run_dir=${run}`, '--set', `stream_port=${weir.streamPort}`, '--set', 'worker_port=0',
      '--set', 'stream_host=127.0.0.1', '--set', 'admin=false', '--set', 'store_bytes=64MiB']);
    assert.ok(code > 0, `exit ${code}\n${output}`);
    assert.match(output, new RegExp(`\\b${weir.streamPort}\\b`));
    fs.rmSync(run, { recursive: true, force: true });
  });
});

test('a second serve in the same run directory is refused and the first goes on', async () => {
  await withWeir({}, async (weir) => {
    const { code, output } = await runWeir(['serve', '--set', `run_dir=${weir.runDir}`, '--set', 'stream_port=0', '--set', 'worker_port=0', '--set', 'admin=false']);
    assert.ok(code > 0, `exit ${code}\n${output}`);
    assert.ok(output.includes(weir.runDir), `names the directory:\n${output}`);
    const worker = await RawWorker.open(weir.workerUrl);
    assert.equal((await worker.set('s', 'g', 'i', 1)).error, undefined);
    await worker.close();
  });
});

test('errors in the configuration file name the file, the line and the key', async () => {
  const directory = temporaryDirectory();
  const file = path.join(directory, 'weir.yaml');
  const cases = [
    ['weir:\n  gateways: 2\n  gatewayz: 3\n', 3, /gatewayz/],
    ['workers:\n  - name: iii-stream\n    config:\n      port: 3112\n      prot: 1\n', 5, /prot/],
    ['weir:\n  gateways: many\n', 2, /gateways/],
    ['weir:\n  ring_bytes: 1\n', 2, /ring_bytes/],
    ['workers:\n  - name: iii-stream\n    config:\n      port: 70000\n', 4, /port|70000/],
    ['weir: [\n', 2, /./],
    ['nonsense: 1\n', 1, /nonsense/],
    ['weir:\n  stream_host: ${WEIR_E2E_NOT_SET}\n', 2, /WEIR_E2E_NOT_SET/],
  ];
  for (const [text, line, names] of cases) {
    fs.writeFileSync(file, text);
    const { code, output } = await runWeir(['serve', '--config', file, '--set', `run_dir=${directory}`]);
    assert.ok(code > 0, `exit ${code} for ${JSON.stringify(text)}\n${output}`);
    assert.ok(output.includes(file), `names the file:\n${output}`);
    assert.match(output, new RegExp(`weir\\.yaml:${line}\\b|line ${line}\\b`), `names line ${line} of ${JSON.stringify(text)}:\n${output}`);
    assert.match(output, names);
  }
  const missing = await runWeir(['serve', '--config', path.join(directory, 'nope.yaml')]);
  assert.ok(missing.code > 0 && missing.output.includes('nope.yaml'));
  fs.rmSync(directory, { recursive: true, force: true });
});

test("the iii engine's configuration file is accepted as it is", async () => {
  const directory = temporaryDirectory();
  const file = path.join(directory, 'config.yaml');
  const [streamPort, workerPort] = [await freePort(), await freePort()];
  fs.writeFileSync(file, `workers:
  - name: iii-stream
    config:
      port: \${WEIR_E2E_PORT:9}
      host: 127.0.0.1
      adapter:
        name: kv
        config: { store_method: in_memory }
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: ${workerPort} }
weir:
  run_dir: ${directory}
  gateways: 1
  store_bytes: 64MiB
  admin: false
`);
  const child = spawn(weirProgram, ['serve', '--config', file], { env: { ...process.env, WEIR_E2E_PORT: String(streamPort) } });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const exited = new Promise((resolve) => child.once('close', resolve));
  await until(() => /^weir: ready .*$/m.test(output) || child.exitCode !== null, 'the ready line');
  assert.match(output, new RegExp(`^weir: ready stream=127\\.0\\.0\\.1:${streamPort} worker=127\\.0\\.0\\.1:${workerPort} gateways=1`, 'm'));
  child.kill('SIGINT');
  assert.equal(await exited, 0, output);
  fs.rmSync(directory, { recursive: true, force: true });
});

test('weir trigger calls a function: key=value and JSON arguments, result on stdout, errors on stderr', async () => {
  await withWeir({}, async (weir) => {
    const trigger = (...args) => runWeir(['trigger', '--run-dir', weir.runDir, ...args]);
    const set = await trigger('stream::set', 'stream_name=s', 'group_id=g', 'item_id=i', 'data={"n":1}');
    assert.equal(set.code, 0, set.output);
    assert.deepEqual(JSON.parse(set.stdout), { old_value: null, new_value: { n: 1 } });
    const get = await trigger('stream::get', '{"stream_name":"s","group_id":"g","item_id":"i"}');
    assert.deepEqual(JSON.parse(get.stdout), { n: 1 });
    const unknown = await trigger('app::nobody', '{}');
    assert.ok(unknown.code > 0);
    assert.match(unknown.stderr, /function_not_found/);
    assert.equal(unknown.stdout, '');
    const worker = await RawWorker.open(weir.workerUrl);
    worker.register('app::echo', ({ data }) => ({ result: data.x }));
    await until(async () => (await trigger('app::echo', 'x=hello')).stdout.trim() === '"hello"', 'a worker answers the command');
    await worker.close();
  });
});

test('weir tail prints the sync and every event, one line each', async () => {
  await withWeir({}, async (weir) => {
    const worker = await RawWorker.open(weir.workerUrl);
    await worker.set('s', 'g', 'i', { n: 0 });
    const child = spawn(weirProgram, ['tail', 's', 'g', '--url', weir.streamUrl]);
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk) => (stdout += chunk));
    child.stderr.on('data', (chunk) => (stderr += chunk));
    const exited = new Promise((resolve) => child.once('close', (code, signal) => resolve({ code, signal })));
    const lines = () => stdout.split('\n').slice(0, -1); // the last one may be a part
    try {
      await until(() => lines().length >= 1 || child.exitCode !== null, 'the sync line');
      await worker.set('s', 'g', 'i', { n: 1 });
      await worker.call('stream::delete', { stream_name: 's', group_id: 'g', item_id: 'i' });
      await until(() => lines().length >= 3 || child.exitCode !== null, `three lines; stderr: ${stderr}`);
      assert.match(lines()[0], /sync/);
      assert.match(lines()[1], /update.*"n":\s*1/);
      assert.match(lines()[2], /delete/);
    } finally {
      child.kill('SIGINT');
    }
    const { code, signal } = await exited;
    assert.ok(code === 0 || code === 130 || signal === 'SIGINT', `exit ${code} ${signal}`);
    await worker.close();
  });
});

test('health and metrics answer on the admin port and say what happens', async () => {
  await withWeir({}, async (weir) => {
    const admin = `http://127.0.0.1:${weir.adminPort}`;
    assert.equal((await fetch(`${admin}/healthz`)).status, 200);
    const worker = await RawWorker.open(weir.workerUrl);
    for (let n = 0; n < 25; n += 1) await worker.set('s', 'g', 'i', n);
    const answer = await fetch(`${admin}/metrics`);
    assert.equal(answer.status, 200);
    assert.match(answer.headers.get('content-type'), /^text\/plain/);
    const text = await answer.text();
    assert.match(text, /^weir_\w+/m);
    for (const line of text.split('\n')) {
      if (line !== '') assert.match(line, /^(# (HELP|TYPE) \w+ .+|[a-zA-Z_:][\w:]*(\{[^}]*\})? [-+.\deE]+|[a-zA-Z_:][\w:]*(\{[^}]*\})? (NaN|[+-]Inf))$/);
    }
    await until(async () => {
      const shown = await (await fetch(`${admin}/metrics`)).text(); // the broker shows its own about once a second
      return /^weir_broker_items 1$/m.test(shown) && /^weir_broker_requests_total 25$/m.test(shown) && /^weir_broker_sessions 1$/m.test(shown);
    }, 'the broker\'s figures');
    const stream = await fetch(`http://127.0.0.1:${weir.streamPort}/metrics`);
    assert.equal(stream.status, 404, 'metrics are not for the public port');
    await worker.close();
  });
});

test('SIGTERM closes every socket with 1001, and the port is free at once', async () => {
  // Not of the range of outgoing connections, of which one might take it between the two lives.
  const weir = await Weir.start({ settings: { stream_port: await freePort() } });
  const subscribers = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  const workers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat();
  const halfOpen = await RawSocket.connect(weir.streamPort);
  const { streamPort } = weir;
  const all = [...subscribers, ...workers];
  await weir.stop();
  for (const client of all) {
    await until(() => client.closed, 'the close');
    assert.equal(client.closed.code, 1001);
  }
  halfOpen.destroy();
  const again = await Weir.start({ settings: { stream_port: streamPort } });
  assert.equal(again.streamPort, streamPort);
  await again.stop({ signal: 'SIGINT' });
});

test('kill -9 of the supervisor leaves no process behind and the run directory usable', async () => {
  const weir = await Weir.start();
  const pids = [...weir.gateways(), weir.broker()];
  process.kill(weir.process.pid, 'SIGKILL');
  await weir.exited;
  await until(() => pids.every((pid) => !weir.isAlive(pid)), 'gateways and broker follow their supervisor');
  const again = await Weir.start({ settings: { run_dir: weir.runDir } });
  await again.stop();
  fs.rmSync(weir.runDir, { recursive: true, force: true });
});

test('--help and --version answer, nonsense is refused', async () => {
  const help = await runWeir(['--help']);
  assert.equal(help.code, 0);
  for (const word of ['serve', 'trigger', 'tail']) assert.match(help.stdout, new RegExp(`\\b${word}\\b`));
  assert.match((await runWeir(['--version'])).stdout, /\d+\.\d+\.\d+/);
  for (const args of [['nonsense'], ['serve', '--nonsense'], ['serve', '--set', 'nope=1'], ['serve', '--gateways', '-1']]) {
    const { code, stderr } = await runWeir(args);
    assert.ok(code > 0, args.join(' '));
    assert.notEqual(stderr, '');
  }
});
