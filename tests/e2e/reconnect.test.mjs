// reconnect.test.mjs -- subscribers that come back with the position they had: all at once after their gateway was killed, and again
// and again while the broker is killed and stopped. Nothing is lost, nothing comes twice, and a position that cannot be served is
// answered with a fresh sync.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { Follower, byId, counters, writeAll } from './lib/follower.mjs';
import { delay, isSanitized, seededRandom, temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const CROWD = isSanitized ? 120 : 400;
const GROUPS = ['g0', 'g1', 'g2', 'g3'];
const ITEMS = 8;
const TOO_OLD = 10;
// Events of a group by which its slowest reader may be behind the others: fewer than lag_events, and of all groups together fewer
// than the ring holds, so that each gets every event however slow the machine is.
const BEHIND_MAX = 300;

function writerOf(worker, random, textBytes) {
  let n = 0;
  return (stream, group) => {
    const id = `item-${random.below(ITEMS)}`;
    n += 1;
    if (random() < 0.1) return worker.call('stream::delete', { stream_name: stream, group_id: group, item_id: id });
    return worker.set(stream, group, id, { id, n, text: 'x'.repeat(random.below(2 * textBytes)) });
  };
}

const listOf = async (worker, stream, group) => (await worker.result('stream::list', { stream_name: stream, group_id: group })).sort(byId);

async function openMany(weir, count) {
  const clients = [];
  while (clients.length < count) clients.push(...(await Promise.all(Array.from({ length: Math.min(50, count - clients.length) }, () => Follower.open(weir.streamUrl)))));
  return clients;
}

// A new connection that goes on where `client` was.
async function comeBack(weir, client) {
  const next = await Follower.open(weir.streamUrl);
  next.group = client.group;
  next.join('return', client.group, { position: client.position, items: client.itemsThere });
  return next;
}

test(`kill -9 of a gateway: its share of ${CROWD} subscribers comes back at once, and goes on`, async () => {
  await withWeir({ settings: { ring_bytes: '4MiB' } }, async (weir, later) => {
    const random = seededRandom('reconnect');
    const [victim, survivor] = weir.gateways();
    const worker = later(await weir.openOn(survivor, () => RawWorker.open(weir.workerUrl)));
    const write = writerOf(worker, random, 500);
    const writeLarge = writerOf(worker, random, 8000);

    for (const group of GROUPS) for (let n = 0; n < 10; n += 1) await write('return', group);
    const old = await openMany(weir, TOO_OLD);
    const oldOfSurvivor = weir.byGateway(old).get(survivor).length;
    for (const client of old) {
      client.group = GROUPS[0];
      await client.joined('return', client.group);
      await client.close();
    }
    await writeAll(1000, () => writeLarge('return', GROUPS[0])); // twice the ring

    const crowd = await openMany(weir, CROWD);
    for (const client of crowd) later(client);
    for (const [index, client] of crowd.entries()) {
      client.group = GROUPS[index % GROUPS.length];
      client.join('return', client.group);
    }
    await until(() => crowd.every(({ epoch }) => epoch !== null), 'every sync');
    const held = weir.byGateway(crowd);
    const [lost, live] = [held.get(victim), held.get(survivor)];
    assert.ok(lost.length > CROWD / 4 && live.length > CROWD / 4, 'the kernel gives each gateway its share');
    const before = await until(async () => {
      const now = await counters(weir);
      return now.syncs === CROWD + TOO_OLD && now;
    }, 'the counters have all syncs');

    let isOver = false;
    let back = [];
    let late = [];
    const keepUp = (group) => {
      const isBack = back.length > 0 && back.every(({ seq }) => seq !== null);
      const readers = isBack ? [...live, ...back, ...late.filter(({ seq }) => seq !== null)] : crowd;
      const seqs = readers.filter((client) => client.group === group).map(({ seq }) => seq);
      return Math.max(...seqs) - Math.min(...seqs) < BEHIND_MAX;
    };
    const writing = (async () => {
      while (!isOver) {
        for (const group of GROUPS.filter(keepUp)) assert.equal((await write('return', group)).error, undefined);
        await delay(1);
      }
    })();
    await until(() => lost.every(({ events }) => events > 10), 'events for all');
    process.kill(victim, 'SIGKILL');
    await until(() => lost.every(({ closed }) => closed), 'the connections end');
    const survivors = live.length + oldOfSurvivor; // the other gateway's syncs are gone with it

    back = await Promise.all(lost.map((client) => comeBack(weir, client)));
    for (const client of back) later(client);
    late = await Promise.all(old.map((client) => comeBack(weir, client)));
    for (const client of late) later(client);
    await until(() => [...back, ...late].every(({ events }) => events > 10), 'all are live again');
    isOver = true;
    await writing;

    for (const group of GROUPS) {
      await worker.set('return', group, 'end', { id: 'end' });
      const list = await listOf(worker, 'return', group);
      for (const client of [...live, ...back, ...late].filter((each) => each.group === group)) {
        await client.waitFor(() => client.items.has('end'), 'the end');
        assert.equal(client.problem, null);
        assert.deepEqual(client.values(), list);
        assert.equal(client.conflated, 0, 'every event, one by one');
      }
    }
    for (const client of live) {
      assert.equal(client.closed, null);
      assert.equal(client.syncs.length, 1, 'who stayed has noticed nothing');
    }
    for (const client of back) {
      assert.deepEqual(client.syncs, [], 'who comes back gets what it missed');
      assert.equal(client.resumed.length, 1);
    }
    for (const client of late) assert.deepEqual(client.syncs.map(({ reason }) => reason), ['expired'], 'who comes too late gets a sync');
    const wanted = { resumes: back.length, resumes_expired: late.length, syncs: survivors + late.length };
    let after;
    await until(async () => {
      after = await counters(weir);
      return Object.entries(wanted).every(([name, value]) => after[name] === value);
    }, 'the counters say who went on and who did not').catch(() => assert.deepEqual(Object.fromEntries(Object.keys(wanted).map((name) => [name, after[name]])), wanted));
    assert.ok(after.group_reads - before.group_reads <= 8 * GROUPS.length, `${after.group_reads - before.group_reads} looks at the store for ${back.length} who came back`);
  });
});

// One subscriber that never stays for long: it reads a little and comes back with its position, as long as the test goes on.
class Nomad {
  items = new Map();
  syncs = [];
  resumed = 0;

  constructor(weir, random, group, shown) {
    Object.assign(this, { weir, random, group, shown });
  }

  async visit(isLast) {
    let client;
    try {
      client = await Follower.open(this.weir.streamUrl);
    } catch {
      return null; // a socket that could not be opened was none
    }
    client.shown = this.shown;
    client.join('return', this.group, this.position === undefined ? {} : { position: this.position, items: this.items });
    if (isLast) return client;
    await Promise.race([delay(this.random.below(60)), client.closing]);
    if (this.random() < 0.3) client.socket._socket.pause(); // what is on its way then was never read
    await delay(this.random.below(10));
    client.socket.terminate();
    await client.closing;
    this.take(client);
    return null;
  }

  take(client) {
    assert.equal(client.problem, null, `${this.group}: ${client.problem}`);
    this.syncs.push(...client.syncs);
    this.resumed += client.resumed.length;
    // Without an answer it is where it was.
    if (client.epoch === null) return;
    this.items = client.itemsThere;
    this.position = client.position;
  }
}

// At level memory the log is written behind: give it so much to write that what is shown afterwards is not there yet.
async function outrunLog(worker, write) {
  const text = 'x'.repeat(BALLAST_BYTES);
  for (let n = 0; n < BALLAST; n += 1) worker.set('ballast', 'g', 'i', text).catch(() => {}); // nobody is to wait for it
  for (let n = 0; n < 5; n += 1) await Promise.all(GROUPS.map((group) => write('return', group)));
}

const BALLAST = 40;
const BALLAST_BYTES = 512 * 1024;
const NOMADS = isSanitized ? 12 : 24;
const ROUNDS = 4;
const RESTARTS_MAX = 20;

for (const [level, settings] of [['synced', { durability: 'synced' }], ['written', { durability: 'written' }], ['memory', { durability: 'memory' }]]) {
  test(`the broker dies and stands still while subscribers come back, level ${level}`, async () => {
    const directory = temporaryDirectory();
    await withWeir({ settings: { lag_events: 20, data_dir: path.join(directory, 'data'), ...settings } }, async (weir, later) => {
      const random = seededRandom(`reconnect-${level}`);
      const worker = later(await RawWorker.open(weir.workerUrl));
      const write = writerOf(worker, random, 300);
      const shown = new Map();
      // Nobody has been shown an event of a group that was never written, so the next broker begins it anew: each has one of which the
      // log knows, whatever is written before the first death.
      for (const group of GROUPS) assert.equal((await worker.set('return', group, 'first', { id: 'first' })).error, undefined);
      const stayers = await openMany(weir, GROUPS.length * 2);
      for (const [index, client] of stayers.entries()) {
        client.group = GROUPS[index % GROUPS.length];
        client.shown = shown;
        later(client);
        await client.joined('return', client.group);
      }
      let isOver = false;
      const nomads = Array.from({ length: NOMADS }, (_, index) => new Nomad(weir, random, GROUPS[index % GROUPS.length], shown));
      let failure;
      const untilOver = async (body) => {
        try {
          while (!isOver) await body();
        } catch (error) {
          failure ??= error;
          isOver = true;
        }
      };
      const running = nomads.map((nomad) => untilOver(() => nomad.visit(false)));
      running.push(untilOver(async () => {
        // What the broker's death leaves open is an error of its own.
        await Promise.all(GROUPS.map((group) => write('return', group)));
        await delay(2);
      }));
      const replaceBroker = async () => {
        const broker = await until(() => weir.broker(), 'a broker');
        if (level === 'memory') await outrunLog(worker, write);
        process.kill(broker, 'SIGKILL');
        await weir.brokerAfter(broker);
      };
      for (let round = 0; round < ROUNDS; round += 1) {
        await delay(150 + random.below(300));
        if (round % 2 === 0) {
          await replaceBroker();
        } else {
          const broker = await until(() => weir.broker(), 'a broker');
          process.kill(broker, 'SIGSTOP');
          await delay(100 + random.below(200));
          process.kill(broker, 'SIGCONT');
        }
      }
      // The log may have caught up before the broker died: then once more.
      const isRestarted = () => stayers.some(({ syncs }) => syncs.some(({ reason }) => reason === 'restarted'));
      for (let mark = 0; level === 'memory' && mark < RESTARTS_MAX && !isRestarted() && !failure; mark += 1) {
        await replaceBroker();
        const marked = async () => (await worker.set('return', GROUPS[0], 'mark', { id: 'mark', mark })).error === undefined;
        await until(marked, 'a write that is answered');
        await until(() => stayers.every(({ group, items }) => group !== GROUPS[0] || items.get('mark')?.mark === mark), 'those who stay have seen it');
      }
      await until(() => failure || nomads.some(({ resumed }) => resumed > 0), 'somebody has gone on');
      isOver = true;
      await Promise.all(running);
      assert.equal(failure, undefined, failure?.message);
      for (const group of GROUPS) await until(async () => (await worker.set('return', group, 'end', { id: 'end' })).error === undefined, 'a write that is answered');

      let resumed = 0;
      const reasons = new Set();
      const last = await Promise.all(nomads.map((nomad) => nomad.visit(true)));
      for (const client of last) later(client);
      const lists = new Map();
      for (const group of GROUPS) lists.set(group, await listOf(worker, 'return', group));
      for (const [index, client] of last.entries()) {
        const nomad = nomads[index];
        await client.waitFor(() => client.items.has('end') && client.since === null, 'the end');
        nomad.take(client);
        assert.deepEqual(client.values(), lists.get(nomad.group));
        resumed += nomad.resumed;
        for (const { reason } of nomad.syncs) reasons.add(reason);
      }
      for (const { syncs } of stayers) for (const { reason } of syncs) reasons.add(reason);
      for (const client of stayers) {
        await client.waitFor(() => client.items.has('end') && client.since === null, 'the end');
        assert.equal(client.problem, null);
        assert.deepEqual(client.values(), lists.get(client.group));
        if (level !== 'memory') assert.equal(client.syncs.length, 1, `who stayed goes on where it stood: ${client.group} ${JSON.stringify(client.syncs)}`);
      }
      assert.ok(resumed > 0);
      reasons.delete(undefined); // first ones
      assert.ok([...reasons].every((reason) => ['expired', 'restarted', 'lagged'].includes(reason)), [...reasons].join());
      if (level === 'memory') assert.ok(reasons.has('expired') || reasons.has('restarted'), 'positions of before do not outlive it');
    });
    fs.rmSync(directory, { recursive: true, force: true });
  });
}
