// lap.test.mjs -- a gateway that stands still until the ring has lapped it: when it goes on, all its subscribers end with the exact
// state and are told, what its triggers missed is counted, and nobody on the other gateway notices anything.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { Follower, byId, counters, seenBy, writeAll } from './lib/follower.mjs';
import { seededRandom, until, withWeir } from './lib/weir.mjs';

const ITEMS = 10;
const GROUPS = ['g0', 'g1'];
const MODES = ['latest', 'lossless', 'disconnect'];
const SOCKETS = 48; // on both gateways
const WRITES = 300; // of each group, about 8 KiB each: several times the ring
const TEXT_BYTES = 16 * 1024;

test('SIGSTOP of a gateway until the ring has lapped it', async () => {
  // While its gateway stands still nobody hears of a client, however long that takes.
  await withWeir({ settings: { ring_bytes: '1MiB', idle_timeout_ms: 0 } }, async (weir, later) => {
    const random = seededRandom('lap');
    const [victim, other] = weir.gateways();
    const writer = later(await weir.openOn(other, () => RawWorker.open(weir.workerUrl)));
    const watcher = later(await weir.openOn(victim, () => RawWorker.open(weir.workerUrl)));
    const handled = [];
    watcher.register('app::seen', (message) => {
      handled.push(message.data);
      return { result: null };
    });
    watcher.send({ type: 'registertrigger', id: 't1', trigger_type: 'stream', function_id: 'app::seen', config: { stream_name: 'lap' } });
    // Its answer comes behind what the broker was told before.
    assert.equal((await watcher.call('app::seen', { id: 'ready' })).error, undefined);

    const write = (group) => (n) => {
      const id = `item-${random.below(ITEMS)}`;
      if (random() < 0.1) return writer.call('stream::delete', { stream_name: 'lap', group_id: group, item_id: id });
      return writer.set('lap', group, id, { id, n, text: 'x'.repeat(random.below(TEXT_BYTES)) });
    };
    for (const group of GROUPS) await writeAll(20, write(group));
    const sockets = [];
    for (let index = 0; index < SOCKETS; index += 1) sockets.push(later(await Follower.open(weir.streamUrl)));
    const held = weir.byGateway(sockets);
    for (const clients of held.values()) {
      assert.ok(clients.length >= 6, 'the kernel gives each gateway its share');
      // Of those that are too slow, every third one wants to be told by a close.
      for (const [index, client] of clients.entries()) {
        Object.assign(client, { group: GROUPS[index % 2], mode: MODES[index % 3] });
        await client.joined('lap', client.group, { mode: client.mode });
      }
    }
    const [stopped, untouched] = [held.get(victim), held.get(other)];
    await writer.set('lap', GROUPS[0], 'before', { id: 'before' });
    await until(() => handled.some(({ id }) => id === 'before'), 'the trigger is there');

    process.kill(victim, 'SIGSTOP');
    try {
      for (const group of GROUPS) {
        const mine = untouched.filter((client) => client.group === group);
        await writeAll(WRITES, write(group), {
          each: 10,
          keepsUp: (n) => seenBy(mine, writer, 'lap', group, n),
        });
        await writer.set('lap', group, 'end', { id: 'end' });
      }
    } finally {
      process.kill(victim, 'SIGCONT');
    }

    for (const group of GROUPS) {
      const list = (await writer.result('stream::list', { stream_name: 'lap', group_id: group })).sort(byId);
      for (const client of untouched.filter((each) => each.group === group)) {
        await client.waitFor(() => client.last.id === 'end', `${group}: the end on the other gateway`);
        assert.equal(client.problem, null);
        assert.equal(client.syncs.length, 1);
        assert.equal(client.conflated, 0, 'every event, one by one');
        assert.deepEqual(client.values(), list);
      }
      for (const client of stopped.filter((each) => each.group === group)) {
        const name = `${group}, ${client.mode}`;
        if (client.mode === 'disconnect') {
          await until(() => client.closed, `${name}: the close`);
          assert.equal(client.closed.code, 1013);
          assert.match(client.closed.reason, /retry_ms=\d+$/);
          continue;
        }
        await client.waitFor(() => client.items.has('end'), `${name}: the end`);
        assert.equal(client.problem, null, name);
        assert.deepEqual(client.syncs.map(({ reason }) => reason), [undefined, 'lagged'], name);
        assert.deepEqual(client.values(), list, name);
      }
    }

    // It is as if nothing had been: events and triggers come.
    await writer.set('lap', GROUPS[0], 'after', { id: 'after' });
    await until(() => handled.some(({ id }) => id === 'after'), 'the trigger goes on');
    for (const client of [...untouched, ...stopped]) {
      if (client.group === GROUPS[0] && client.mode !== 'disconnect') await client.waitFor(() => client.items.has('after'), 'the event after that');
    }
    const closed = stopped.filter(({ mode }) => mode === 'disconnect').length;
    let now;
    await until(async () => {
      now = await counters(weir);
      return now.feed_lapped > 0 && now.trigger_dropped > 0 && now.syncs_lagged === stopped.length - closed && now.subscribers_too_slow === closed;
    }, 'the counters say what was missed, and who was told').catch((error) => {
      const { feed_lapped, trigger_dropped, syncs_lagged, subscribers_too_slow } = now;
      assert.fail(`${error.message}: ${JSON.stringify({ feed_lapped, trigger_dropped, syncs_lagged, subscribers_too_slow, stopped: stopped.length, closed })}`);
    });
  });
});
