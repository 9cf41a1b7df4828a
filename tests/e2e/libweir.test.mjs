// libweir.test.mjs -- the C SDK through real processes: the example worker that gates joins and counts who is there.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Weir, binDir, delay, temporaryDirectory, until } from './lib/weir.mjs';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkWorker } from './lib/sdk.mjs';

const CONFIGURATION = `
weir:
  auth_tokens:
    alice-token: { user: alice }
    bob-token: { user: bob }
    guest-token: { role: guest }
`;

let weir;
let directory;
let presence;

function startPresence() {
  const child = spawn(path.join(binDir, 'presence'), ['--socket', path.join(weir.runDir, 'weir.sock'), '--open', 'lobby'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  child.text = '';
  child.stderr.on('data', (chunk) => (child.text += chunk));
  child.exited = new Promise((resolve) => child.once('close', (code, signal) => resolve({ code, signal })));
  return child;
}

// The gateway that holds the worker's connection: the accepted end of a unix socket bears the listener's path. A look at the sockets
// may miss one.
function gatewayOfPresence() {
  const socket = path.join(weir.runDir, 'weir.sock');
  const inodes = fs.readFileSync('/proc/net/unix', 'utf8').split('\n').map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[7] === socket && fields[5] === '03').map((fields) => `socket:[${fields[6]}]`);
  return weir.gateways().find((pid) => fs.readdirSync(`/proc/${pid}/fd`).some((fd) => {
    try {
      return inodes.includes(fs.readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false;
    }
  }));
}

const open = (token) => Subscriber.open(`${weir.streamUrl}/?token=${token}`);

// The outcome of a join: the type of its first envelope.
async function outcomeOf(subscriber, stream, group, subscriptionId) {
  const have = subscriber.envelopes.length;
  subscriber.join(stream, group, { subscriptionId });
  await subscriber.count(have + 1);
  return subscriber.envelopes[have].event.type;
}

before(async () => {
  directory = temporaryDirectory();
  fs.writeFileSync(path.join(directory, 'weir.yaml'), CONFIGURATION);
  weir = await Weir.start({ args: ['--config', path.join(directory, 'weir.yaml')] });
  presence = startPresence();
  // The broker has told the gateway that passes on the list; of the other that says nothing.
  for (const worker of [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat()) {
    await until(async () => {
      const { triggers, registered_triggers } = await worker.result('engine::registered-triggers::list', {});
      return (triggers ?? registered_triggers).filter(({ trigger_type }) => /^stream:(join|leave)$/.test(trigger_type)).length === 2;
    }, 'both triggers are bound');
    await worker.close();
  }
});
after(async () => {
  presence?.kill('SIGTERM');
  const exit = await presence?.exited;
  await weir?.stop();
  fs.rmSync(directory, { recursive: true, force: true });
  assert.deepEqual(exit, { code: 0, signal: null }, presence.text);
});

const hereOf = async (worker, stream, group) => {
  const { result } = await worker.call('stream::get', { stream_name: 'presence', group_id: stream, item_id: group });
  return result?.here ?? 0;
};

test('who has no token is refused at the handshake, who has no user at the gate', async () => {
  await assert.rejects(Subscriber.open(weir.streamUrl));
  const guest = await open('guest-token');
  assert.equal(await outcomeOf(guest, 'private', 'room', 's1'), 'unauthorized');
  assert.equal(await outcomeOf(guest, 'lobby', 'room', 's2'), 'sync');
  const alice = await open('alice-token');
  assert.equal(await outcomeOf(alice, 'private', 'room', 's1'), 'sync');
  for (const client of [guest, alice]) await client.close();
});

test('presence is counted exactly: leaves, closed sockets, killed gateways', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const watcher = await open('alice-token');
  await watcher.joined('presence', 'count');
  const clients = [];
  for (let n = 0; n < 20; n += 1) {
    const client = await open(n % 2 === 0 ? 'alice-token' : 'bob-token');
    assert.equal(await outcomeOf(client, 'count', 'room', 's1'), 'sync');
    clients.push(client);
  }
  await until(async () => (await hereOf(worker, 'count', 'room')) === 20, 'all twenty are counted');
  clients[0].leave('count', 'room');
  clients[1].socket.terminate();
  await until(async () => (await hereOf(worker, 'count', 'room')) === 18, 'two have left');
  await watcher.waitFor(() => watcher.envelopes.at(-1).event.data.here === 18, 'the watcher is told');

  // Not the worker's own: its triggers would be gone with it, and who leaves then is not counted.
  const kept = await until(gatewayOfPresence, 'the gateway that holds the worker');
  const victim = weir.gateways().find((pid) => pid !== kept);
  const survivors = 18 - weir.byGateway(clients.slice(2)).get(victim).length;
  await worker.close();
  process.kill(victim, 'SIGKILL');
  const counter = await until(() => RawWorker.open(weir.workerUrl).catch(() => null), 'a worker connection');
  await until(async () => (await hereOf(counter, 'count', 'room')) === survivors, `the ${survivors} on the other gateway are left`);
  await delay(500);
  assert.equal(await hereOf(counter, 'count', 'room'), survivors, 'nobody left twice');
  for (const client of clients) client.socket.terminate();
  await until(async () => (await hereOf(counter, 'count', 'room')) === 0, 'nobody is there');
  watcher.socket.terminate();
  await counter.close();
});

test('the worker comes back after every gateway has been killed, with its functions and triggers', async () => {
  const gone = weir.gateways();
  for (const pid of gone) process.kill(pid, 'SIGKILL');
  await until(() => /connecting again/.test(presence.text), 'the loss is told');
  await until(() => [weir.gateways()].find((pids) => pids.length === 2 && !pids.some((pid) => gone.includes(pid))), 'new gateways');
  const worker = await until(() => openSdkWorker(weir.workerUrl).catch(() => null), 'a worker connection');
  await until(async () => {
    const { functions } = await worker.trigger({ function_id: 'engine::functions::list', payload: { prefix: 'presence::' } });
    return functions.length === 2;
  }, 'the functions are back');
  const guest = await until(() => open('guest-token').catch(() => null), 'a subscriber');
  await until(async () => (await outcomeOf(guest, 'private', 'again', 's1')) === 'unauthorized', 'the gate is back');
  await guest.close();
  await worker.shutdown();
});
