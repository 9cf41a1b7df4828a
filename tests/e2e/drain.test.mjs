// drain.test.mjs -- gateways that leave: `weir drain`, SIGTERM, and what may go wrong meanwhile.
//
// Subscribers keep the position of their last envelope and come back with it (lib/resume_fleet.mjs). What they must see is one
// unbroken order of events: no event missing, none twice.
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkClient, openSdkWorker } from './lib/sdk.mjs';
import { LIMIT_MS, delay, isSanitized, runWeir, standStill, temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const SUBSCRIBERS = isSanitized ? 30 : Number(process.env.WEIR_DRAIN_SUBSCRIBERS ?? 150);
const RATE = isSanitized ? 50 : Number(process.env.WEIR_DRAIN_RATE ?? 200);

class Fleet {
  static async start(weir, count) {
    const fleet = new Fleet();
    const program = path.join(path.dirname(fileURLToPath(import.meta.url)), 'lib/resume_fleet.mjs');
    fleet.process = fork(program, [weir.streamUrl, 'chat', 'room', String(count)], { stdio: 'inherit' });
    fleet.ended = once(fleet.process, 'exit').then(String);
    await fleet.#message('joined');
    return fleet;
  }

  async #message(name) {
    for (;;) {
      const [message] = await Promise.race([once(this.process, 'message'), this.ended.then((how) => assert.fail(`the fleet has ended: ${how}`))]);
      if (message[name] !== undefined) return message[name];
    }
  }

  async reach(seq, limitMs = 2 * LIMIT_MS) {
    this.process.send({ reach: seq });
    let timer; // not left behind, for the process would wait for it
    const late = new Promise((resolve) => (timer = setTimeout(resolve, limitMs, true)));
    const isLate = await Promise.race([this.#message('reached'), late]).finally(() => clearTimeout(timer));
    if (isLate === true) assert.fail(`not everybody came to event ${seq}: ${JSON.stringify(await this.report())}`);
  }

  async report() {
    this.process.send({ report: true });
    return this.#message('report');
  }

  close() {
    this.process.disconnect();
  }
}

// After which a gateway that is to stop takes a worker for silent (gateway/parting.h).
const SILENT_MS = 100;

// Writes numbered events, one after the other, until it is stopped; every call has to be answered. Of a worker that has been silent
// one call may be on its way while the gateway closes, and is not carried out (docs/operations.md). This process is silent when it
// stands still between two calls; that call alone is made again.
class Writer {
  sent = 0;
  failures = [];
  calledMs = performance.now();

  constructor(worker) {
    this.worker = worker;
    this.finished = this.#run();
  }

  async #run() {
    while (!this.isStopped) {
      const wasLost = await this.#call(this.sent + 1).then(() => false, (error) => {
        if (error.code === 'TIMEOUT' && this.silentMs >= SILENT_MS) return true;
        this.failures.push(`${error.code}: ${error.message}`);
        return false;
      });
      if (!wasLost) this.sent += 1;
      await delay(1000 / RATE);
    }
  }

  // It is sent before this returns.
  #call(n) {
    const before = this.calledMs;
    this.calledMs = performance.now();
    const answer = this.worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'chat', group_id: 'room', item_id: 'm', data: { n } } });
    this.silentMs = performance.now() - before;
    return answer;
  }

  async stop() {
    this.isStopped = true;
    await this.finished;
    return this.sent;
  }
}

// The writer is on gateway `pid`, for a call may be lost with its gateway or when the broker does not answer it in time.
async function withWriterAndFleet(weir, close, pid, count) {
  const { worker } = await weir.openOn(pid, () => openSdkClient(weir.workerUrl));
  close(worker);
  await worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'chat', group_id: 'room', item_id: 'm', data: { n: 0 } } });
  const fleet = close(await Fleet.start(weir, count));
  const writer = new Writer(worker);
  return { worker, fleet, writer };
}

// Nothing was lost, nothing came twice, and nobody was cut off without a word.
function assertUnbroken(report) {
  const { events, hints, codes, ...counts } = report;
  assert.ok(events > 0);
  assert.deepEqual(
    { lost: counts.lost, repeated: counts.repeated, mixed: counts.mixed, elsewhere: counts.elsewhere, unhinted: counts.unhinted },
    { lost: 0, repeated: 0, mixed: 0, elsewhere: 0, unhinted: 0 },
    JSON.stringify(report),
  );
}

const drain = (weir, ...args) => runWeir(['drain', '--run-dir', weir.runDir, ...args], { limitMs: 3 * LIMIT_MS });

test('a rolling restart under load: every subscriber goes on where it was, every call is answered', async () => {
  // So long that no call is open when it is over, should the broker stand still. With nobody left it is over before.
  await withWeir({ gateways: 2, settings: { drain_ms: 20000, retry_ms: 100 } }, async (weir, close) => {
    const { fleet, writer } = await withWriterAndFleet(weir, close, weir.gateways()[0], SUBSCRIBERS);
    const handled = new Set();
    const handler = close(await openSdkWorker(weir.workerUrl));
    handler.registerFunction('on-chat', async ({ event }) => {
      handled.add(event.data.n);
      return {};
    });
    handler.registerTrigger({ type: 'stream', function_id: 'on-chat', config: { stream_name: 'chat' } });
    await until(() => handled.size > 0, 'the trigger runs');
    const before = weir.gateways();

    const { code, output } = await drain(weir);

    assert.equal(code, 0, output);
    for (const name of ['gateway-0', 'gateway-1']) {
      assert.match(output, new RegExp(`${name}: draining`));
      assert.match(output, new RegExp(`${name}: \\d+ connections? left`));
      assert.match(output, new RegExp(`${name}: ready after \\d+\\.\\d s`));
    }
    assert.match(output, /2 gateways restarted/);
    const after = weir.gateways();
    assert.equal(after.length, 2);
    assert.deepEqual(after.filter((pid) => before.includes(pid)), [], 'both are new');
    assert.doesNotMatch(weir.stderr, /event=(ended|killed)/, 'no death was counted');
    const written = writer.sent;
    await until(() => Math.max(...handled) > written, 'triggers go on');
    const last = await writer.stop();
    assert.deepEqual(writer.failures, []);
    await fleet.reach(last + 1);
    const report = await fleet.report();
    assertUnbroken(report);
    assert.equal(report.cut, 0, `everybody was told: ${JSON.stringify(report)}`);
    assert.equal(report.untouched, 0, 'each was sent away at least once');
    // Who was sent away again before it had said where it was is sent away more often than it went on.
    assert.ok(report.resumed >= SUBSCRIBERS, `and went on: ${JSON.stringify(report)}`);
    assert.equal(report.syncs, SUBSCRIBERS, 'without a fresh sync');
    assert.ok(report.hints.least >= 100);
  });
});

test('SIGTERM drains a gateway: 503 for health and for handshakes, workers answered, a second signal ends it', async () => {
  await withWeir({ gateways: 2, settings: { drain_ms: 60000, retry_ms: 100 } }, async (weir, close) => {
    const before = weir.gateways();
    const [pid] = before;
    const subscribers = [];
    for (let i = 0; i < 3; i += 1) subscribers.push(close(await weir.openOn(pid, () => Subscriber.open(weir.streamUrl))));
    // A call that is answered late, by a worker elsewhere.
    const other = close(await weir.openOn(before[1], () => RawWorker.open(weir.workerUrl)));
    other.register('slow', () => undefined);
    const caller = close(await weir.openOn(pid, () => RawWorker.open(weir.workerUrl)));
    await until(async () => (await caller.call('engine::functions::list', {})).result?.functions?.some((one) => one.function_id === 'slow'), 'slow is known');
    const answer = caller.callRaw('slow', {});
    await other.waitFor(() => other.invocations.length === 1, 'the call');
    const open = await weir.openOn(pid, () => openTcp(weir.streamPort));
    const late = await weir.openOn(pid, () => openTcp(weir.streamPort));
    const silent = await weir.openOn(pid, () => openTcp(weir.streamPort));

    process.kill(pid, 'SIGTERM');
    await until(() => /event=draining gateway=\d connections=\d+ window_ms=60000/.test(weir.stderr), 'the line');
    assert.match(await open.ask('GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n'), /^HTTP\/1\.1 503 [^]*Connection: close[^]*"status":"draining"/);
    assert.match(await late.ask(UPGRADE), /^HTTP\/1\.1 503 [^]*\r\nRetry-After: \d+\r\n/);
    await until(async () => (await statusOf(weir.streamPort, '/healthz')) === 200, 'the other gateway answers new connections');
    for (const subscriber of subscribers) {
      const { code, reason } = await until(() => subscriber.closed, 'the close');
      assert.equal(code, 1012);
      assert.match(reason, /^service restart; retry_ms=\d+$/);
    }
    assert.equal(caller.closed, null, 'a call is in flight');
    const [{ invocation_id: id }] = other.invocations;
    other.send({ type: 'invocationresult', invocation_id: id, function_id: 'slow', result: 'at last' });
    assert.equal((await answer).message.result, 'at last');
    assert.equal((await until(() => caller.closed, 'the close')).code, 1012);
    assert.match(await silent.ask(''), /^HTTP\/1\.1 503 [^]*\r\nRetry-After: \d+\r\n/, 'a request that has not come is answered');
    await until(() => !weir.isAlive(pid), 'the gateway ends when everybody has gone');
    await until(() => /event=drained gateway=\d connections=\d+ closed=4 /.test(weir.stderr), 'the line that sums it up');

    const again = (await weir.gatewaysAfter(pid)).find((one) => !before.includes(one));
    const bystander = close(await weir.openOn(again, () => Subscriber.open(weir.streamUrl)));
    const holder = close(await weir.openOn(again, () => RawWorker.open(weir.workerUrl)));
    holder.callRaw('slow', {}).catch(() => {});
    await other.waitFor(() => other.invocations.length === 2, 'the call');
    process.kill(again, 'SIGTERM');
    assert.equal((await until(() => bystander.closed, 'the close of who waits for nothing')).code, 1012);
    assert.equal(holder.closed, null, 'it waits for the answer');
    process.kill(again, 'SIGTERM');
    assert.equal((await until(() => holder.closed, 'the close')).code, 1001);
    await until(() => !weir.isAlive(again), 'the gateway ends');
  });
});

test('a gateway killed while it drains is told of, and nobody else is harmed', async () => {
  await withWeir({ gateways: 2, settings: { drain_ms: 60000, retry_ms: 100 } }, async (weir, close) => {
    const { fleet, writer } = await withWriterAndFleet(weir, close, gatewayNumber(weir, 1), 40);
    const pid = gatewayNumber(weir, 0);
    const blocker = close(await weir.openOn(pid, () => RawWorker.open(weir.workerUrl)));
    blocker.register('stuck', () => undefined);
    blocker.callRaw('stuck', {}).catch(() => {});
    await blocker.waitFor(() => blocker.invocations.length === 1, 'the call that keeps the gateway');
    const done = drain(weir, '--gateway', '0');
    await until(() => /event=draining gateway=0/.test(weir.stderr), 'it drains');
    process.kill(pid, 'SIGKILL');
    const { code, output } = await done;
    assert.equal(code, 1, output);
    assert.match(output, /gateway-0 ended with signal 9 \(Killed\) before it was drained/);
    assert.match(output, /gateway-0: ready after/, 'it is back all the same');
    const last = await writer.stop();
    assert.deepEqual(writer.failures, []);
    await fleet.reach(last + 1);
    const report = await fleet.report();
    assertUnbroken(report);
    assert.equal(report.syncs, 40, 'the first ones only');
  });
});

test('a drain without a broker, and with clients that never read, comes to its end', async () => {
  await withWeir({ gateways: 2, settings: { drain_ms: 1000, retry_ms: 100 } }, async (weir, close) => {
    const { fleet, writer } = await withWriterAndFleet(weir, close, gatewayNumber(weir, 1), 20);
    const stuck = [];
    for (let i = 0; i < 5; i += 1) {
      const subscriber = close(await weir.openOn(gatewayNumber(weir, 0), () => Subscriber.open(weir.streamUrl)));
      await subscriber.joined('chat', 'large');
      subscriber.socket._socket.pause();
      stuck.push(subscriber);
    }
    const text = 'x'.repeat(400000);
    for (let i = 0; i < 20; i += 1)
      await writer.worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'chat', group_id: 'large', item_id: 'm', data: { text } } });
    const one = await drain(weir, '--gateway', '0');
    assert.equal(one.code, 0, one.output);
    for (const subscriber of stuck) subscriber.socket._socket.resume();

    const last = await writer.stop();
    const broker = weir.broker();
    let done;
    try {
      await standStill(broker);
      done = drain(weir, '--gateway', '1');
      await until(() => /event=drained gateway=1/.test(weir.stderr), 'it drains without the broker');
    } finally {
      process.kill(broker, 'SIGCONT');
    }
    const two = await done;
    assert.equal(two.code, 0, two.output);
    assert.deepEqual(writer.failures, []);
    await fleet.reach(last + 1);
    assertUnbroken(await fleet.report());
  });
});

test('weir drain says what is wrong', async () => {
  const nowhere = temporaryDirectory();
  const none = await runWeir(['drain', '--run-dir', nowhere]);
  assert.equal(none.code, 1);
  assert.match(none.stderr, /no `weir serve` runs with run_dir .*--run-dir/);
  for (const args of [['--gateway'], ['--gateway', 'x'], ['--gateway', ''], ['now'], ['--unknown']]) {
    const { code } = await runWeir(['drain', ...args]);
    assert.equal(code, 2, args.join(' '));
  }
  await withWeir({ gateways: 2, settings: { drain_ms: 2000 } }, async (weir) => {
    const beyond = await drain(weir, '--gateway', '2');
    assert.equal(beyond.code, 1);
    assert.match(beyond.stderr, /there is no gateway 2: they are numbered 0 to 1/);
    const pid = gatewayNumber(weir, 1);
    await standStill(pid);
    const done = drain(weir);
    await until(() => /event=drained process=gateway-0/.test(weir.stderr), 'the first is restarted');
    const busy = await drain(weir);
    assert.equal(busy.code, 1);
    assert.match(busy.stderr, /another command is under way/);
    const { code, output } = await done;
    assert.equal(code, 1, output);
    assert.match(output, /gateway-1 did not drain within \d+ ms and was killed/);
    assert.match(output, /gateway-1: ready after/);
    assert.equal(weir.gateways().length, 2);
    const whole = await drain(weir);
    assert.equal(whole.code, 0, whole.output);
  });
});

test('a stop of the whole server does not wait for a drain, and ends one under way', async () => {
  await withWeir({ gateways: 2, settings: { drain_ms: 60000 } }, async (weir, close) => {
    const subscribers = [];
    for (let i = 0; i < 4; i += 1) subscribers.push(close(await Subscriber.open(weir.streamUrl)));
    const worker = close(await weir.openOn(gatewayNumber(weir, 0), () => RawWorker.open(weir.workerUrl)));
    worker.register('stuck', () => undefined);
    worker.callRaw('stuck', {}).catch(() => {});
    await worker.waitFor(() => worker.invocations.length === 1, 'the call that keeps the gateway');
    const done = drain(weir, '--gateway', '0');
    await until(() => /event=draining gateway=0/.test(weir.stderr), 'it drains');
    await weir.stop();
    const { code, output } = await done;
    assert.equal(code, 1);
    assert.match(output, /the server stops/);
    assert.equal((await until(() => worker.closed, 'the close')).code, 1001);
    for (const subscriber of subscribers) assert.ok([1001, 1012].includes((await until(() => subscriber.closed, 'the close')).code));
  });
});

// ---- helpers ----

const UPGRADE =
  'GET /stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';

// The pid of gateway `number`, by what it was started with.
function gatewayNumber(weir, number) {
  return weir.gateways().find((pid) => weir.argumentsOf(pid).join(' ').includes(`--index ${number}`));
}

async function openTcp(port) {
  const socket = net.connect(port, '127.0.0.1');
  await once(socket, 'connect');
  return {
    localPort: socket.localPort,
    remotePort: socket.remotePort,
    close: () => socket.destroy(),
    async ask(request) {
      let answer = '';
      socket.on('data', (data) => (answer += data));
      socket.write(request);
      await once(socket, 'end');
      socket.destroy();
      return answer;
    },
  };
}

// Undefined: the kernel has reset the connection, which was under way when a listener closed.
function statusOf(port, target) {
  return new Promise((resolve) => {
    http
      .get({ host: '127.0.0.1', port, path: target, agent: false }, (response) => {
        response.resume();
        response.on('end', () => resolve(response.statusCode));
      })
      .on('error', () => resolve(undefined));
  });
}
