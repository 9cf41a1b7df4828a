// stopped.test.mjs -- readers that do not read, beside others that do: those who read get every event in order, the gateways keep
// nothing for those who do not, and when they read again they end with the exact newest state and are told of each jump.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { Follower, byId, counters, seenBy, writeAll } from './lib/follower.mjs';
import { isSanitized, seededRandom, temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const ITEMS = 12;
const VALUE_BYTES = 24 * 1024; // about
// For each group more than the kernel takes for a socket nobody reads (tcp_wmem and tcp_rmem: about 10 MiB), for all of them less
// than the ring has.
const WRITES = 600;
const LAG_EVENTS = 40;
const LIVE = 4;
const STOPPED_EACH = 3;
// Of both gateways: far less than what the stopped ones have not taken, far more than what buffers need.
const MEMORY_BYTES = (isSanitized ? 192 : 48) * 1024 * 1024;

function privateBytes(pids) {
  let bytes = 0;
  for (const pid of pids) {
    const text = fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
    for (const [, kilobytes] of text.matchAll(/^Private_\w+:\s+(\d+) kB$/gm)) bytes += Number(kilobytes) * 1024;
  }
  return bytes;
}

// Some remove an item, so that all kinds of events are left out.
function writesOf(random, writer, stream, group) {
  return (n) => {
    const id = `item-${random.below(ITEMS)}`;
    if (random() < 0.1) return writer.call('stream::delete', { stream_name: stream, group_id: group, item_id: id });
    return writer.set(stream, group, id, { id, n, text: 'x'.repeat(random.below(2 * VALUE_BYTES)) });
  };
}

const listOf = async (writer, stream, group) => (await writer.result('stream::list', { stream_name: stream, group_id: group })).sort(byId);
const openFollower = (weir) => Follower.open(weir.streamUrl);
const resumeReading = (client) => client.socket._socket.resume();

// A configuration in which stream `kept` is lossless and `closed` disconnects.
function configuration(later) {
  const directory = temporaryDirectory();
  later({ close: () => fs.rmSync(directory, { recursive: true, force: true }) });
  const file = path.join(directory, 'weir.yaml');
  fs.writeFileSync(file, 'weir:\n  streams:\n    kept: { slow: lossless }\n    closed: { slow: disconnect }\n');
  return file;
}

async function openGroup(weir, later, stream, modes) {
  const live = [];
  // Lossless: this process may be late itself, and then they would be slow ones.
  for (let index = 0; index < LIVE; index += 1) live.push(later(await (await openFollower(weir)).joined(stream, 'g', { mode: 'lossless' })));
  const stopped = new Map();
  for (const mode of modes) {
    stopped.set(mode, []);
    for (let index = 0; index < STOPPED_EACH; index += 1) {
      const client = later(await (await openFollower(weir)).joined(stream, 'g', { mode }));
      stopped.get(mode).push(client);
    }
  }
  return { live, stopped };
}

function assertClosedAsTooSlow(client) {
  assert.equal(client.closed.code, 1013);
  assert.match(client.closed.reason, /retry_ms=\d+$/);
}

test('stopped readers of each policy: live ones get all in order, memory stays, and all end with the exact state', async () => {
  const cleanups = [];
  const file = configuration((closable) => cleanups.push(closable));
  await withWeir({ settings: { lag_events: LAG_EVENTS, idle_timeout_ms: 0 }, args: ['--config', file] }, async (weir, later) => {
    const random = seededRandom('stopped');
    const writer = later(await RawWorker.open(weir.workerUrl));
    // Modes of joins; undefined: the stream's own policy.
    const groups = new Map([
      ['plain', await openGroup(weir, later, 'plain', ['latest', 'lossless', 'disconnect', undefined])],
      ['kept', await openGroup(weir, later, 'kept', [undefined, 'latest'])],
      ['closed', await openGroup(weir, later, 'closed', [undefined])],
    ]);
    const expected = (stream, mode) => mode ?? { plain: 'latest', kept: 'lossless', closed: 'disconnect' }[stream];
    const all = [...groups.values()].flatMap(({ stopped }) => [...stopped.values()].flat());
    const joins = all.length + groups.size * LIVE;
    const before = privateBytes(weir.gateways());
    for (const client of all) client.socket._socket.pause();
    for (const [stream, { live }] of groups) {
      const write = writesOf(random, writer, stream, 'g');
      await writeAll(WRITES, write, {
        keepsUp: (n) => seenBy(live, writer, stream, 'g', n),
      });
    }
    const grown = privateBytes(weir.gateways()) - before;
    assert.ok(grown < MEMORY_BYTES, `the gateways took ${grown} bytes for readers that do not read`);

    for (const client of all) resumeReading(client);
    let tooSlow = 0;
    for (const [stream, { live, stopped }] of groups) {
      const list = await listOf(writer, stream, 'g');
      const last = live[0].seq;
      for (const client of live) {
        await client.waitFor(() => client.seq === last, `${stream}: the end at a reader that reads`);
        assert.equal(client.problem, null);
        assert.equal(client.conflated + client.syncs.length, 1, 'nothing but its first sync and events');
        assert.deepEqual(client.values(), list);
      }
      for (const [mode, clients] of stopped) {
        for (const client of clients) {
          const policy = expected(stream, mode);
          if (policy === 'disconnect') {
            await until(() => client.closed, `${stream}/${mode}: the close`);
            assertClosedAsTooSlow(client);
            tooSlow += 1;
            assert.equal(client.problem, null, `${stream}/${mode}`);
            continue;
          }
          await client.waitFor(() => client.seq === last && client.since === null, `${stream}/${mode}: the end`);
          assert.equal(client.problem, null, `${stream}/${mode}`);
          assert.deepEqual(client.values(), list, `${stream}/${mode}`);
          assert.equal(client.syncs.length, 1, `${stream}/${mode}: the ring held all`);
          if (policy === 'latest') assert.ok(client.leftOut > 0, `${stream}/${mode}: events were left out`);
          else assert.equal(client.conflated, 0, `${stream}/${mode}: every event`);
        }
      }
    }
    const leftOut = all.reduce((sum, client) => sum + client.leftOut, 0);
    const after = await until(async () => {
      const now = await counters(weir);
      return now.events_conflated === leftOut && now.subscribers_too_slow === tooSlow && now;
    }, 'the counters say what was left out, and who was closed');
    assert.equal(tooSlow, 2 * STOPPED_EACH);
    assert.ok(after.conflations >= 3 * STOPPED_EACH);
    assert.ok(after.deliveries_busy >= all.length);
    assert.equal(after.syncs, joins, 'nobody took another sync');
    assert.equal(after.syncs_lagged, 0);
  });
  for (const closable of cleanups) closable.close();
});
