// order.test.mjs -- one order for everybody: concurrent writers, subscribers that join at random moments on both gateways.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { History } from './lib/model.mjs';
import { Weir, delay, isSanitized, seededRandom } from './lib/weir.mjs';

const SETS = 10000;
const WRITERS_PER_GATEWAY = 2;
const SUBSCRIBERS = 50;
const ITEMS = 200;
const WINDOW = 64;

let weir;
before(async () => {
  // Nobody waits for the readers: they may be behind by all there is, and still get every event.
  weir = await Weir.start({ settings: { lag_events: 16384 } });
});
after(() => weir?.stop());

// Keeps the text of each frame only; parsing 50 × 10,000 envelopes is left to the checks that need it.
class TextSubscriber extends Subscriber {
  take(data) {
    this.texts.push(data.toString());
    this.wake();
  }
}

// Writes `count` times with WINDOW calls in flight; about one in sixteen is a delete or a send.
async function write(worker, name, count, random, answers) {
  let next = 0;
  const lane = async () => {
    while (next < count) {
      const n = next++;
      const item_id = `item-${random.below(ITEMS)}`;
      const where = { stream_name: 'order', group_id: 'g' };
      const dice = random();
      if (dice < 0.04) answers.push({ kind: 'delete', item_id, ...(await worker.call('stream::delete', { ...where, item_id })) });
      else if (dice < 0.06) await worker.call('stream::send', { ...where, type: 'note', data: { name, n } });
      else answers.push({ kind: 'set', ...(await worker.call('stream::set', { ...where, item_id, data: { id: item_id, name, n } })) });
    }
  };
  await Promise.all(Array.from({ length: WINDOW }, lane));
}

test(`${SETS} writes by 4 writers while ${SUBSCRIBERS} subscribers join: every sync and every event exact`, async () => {
  const random = seededRandom('order');
  const writers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl), WRITERS_PER_GATEWAY)).values()].flat();
  const [[witness], [second]] = [...(await weir.openOnEach(() => TextSubscriber.open(weir.streamUrl))).values()];
  for (const subscriber of [witness, second]) {
    subscriber.join('order', 'g');
    await subscriber.waitFor(() => subscriber.texts.length === 1, 'the first sync');
  }

  const answers = [];
  const writing = Promise.all(writers.map((worker, index) => write(worker, `w${index}`, SETS / writers.length, random, answers)));
  const joins = Array.from({ length: SUBSCRIBERS }, () => random.below(Math.floor(SETS * 0.9))).sort((left, right) => left - right);
  const subscribers = [];
  const joining = (async () => {
    for (const moment of joins) {
      await witness.waitFor(() => witness.texts.length > moment, `event ${moment}`, 240000);
      const subscriber = await TextSubscriber.open(weir.streamUrl);
      subscriber.join('order', 'g');
      subscribers.push(subscriber);
    }
  })();
  await Promise.all([writing, joining]);
  for (const subscriber of subscribers) await subscriber.waitFor(() => subscriber.texts.length > 0, 'the sync');

  // The last event is known to everybody who has joined once a final send has arrived.
  await writers[0].call('stream::send', { stream_name: 'order', group_id: 'g', type: 'end', data: null });
  const all = [witness, second, ...subscribers];
  for (const [index, subscriber] of all.entries()) {
    await subscriber.waitFor(() => subscriber.texts.at(-1)?.includes('"type":"end"'), `the end at subscriber ${index}`, 120000);
  }
  for (const held of weir.byGateway(subscribers).values()) assert.ok(held.length > 0, 'subscribers were on both gateways');

  const history = new History(witness.texts);
  const syncs = all.map((subscriber, index) => history.checkSubscriber(subscriber.texts, `subscriber ${index}`));
  const bySeq = new Map();
  for (const sync of syncs) bySeq.set(sync.seq, [...(bySeq.get(sync.seq) ?? []), sync]);
  history.walk(bySeq.keys(), (seq, model) => {
    for (const sync of bySeq.get(seq)) assert.deepEqual(sync.event.data, model.values(), `sync at seq ${seq} equals the state then`);
  });

  // Every acknowledged write is one event, and its old value is the state before that event.
  const before = new Map();
  const state = new Map();
  const progress = new Map();
  for (const { id, event } of history.envelopes) {
    if (event.type === 'create' || event.type === 'update') {
      assert.equal(event.type === 'create', !state.has(id));
      before.set(JSON.stringify(event.data), state.get(id) ?? null);
      state.set(id, event.data);
    } else if (event.type === 'delete') {
      assert.deepEqual(event.data, state.get(id));
      state.delete(id);
    }
    const data = event.type === 'event' ? event.event.data : event.data;
    if (event.type === 'delete' || data === null) continue;
    assert.ok(data.n > (progress.get(data.name) ?? -1), "one connection's writes keep their order");
    progress.set(data.name, data.n);
  }
  for (const answer of answers) {
    assert.equal(answer.error, undefined);
    if (answer.kind === 'set') assert.deepEqual(answer.result.old_value, before.get(JSON.stringify(answer.result.new_value)));
  }
  assert.equal(answers.filter(({ kind }) => kind === 'set').length, before.size, 'as many set events as answers');
  const list = await writers[3].result('stream::list', { stream_name: 'order', group_id: 'g' });
  assert.deepEqual(new Set(list.map((value) => JSON.stringify(value))), new Set([...state.values()].map((value) => JSON.stringify(value))));
  await Promise.all([...all, ...writers].map((client) => client.close()));
});

test('many groups at once: each keeps its own gapless order on every gateway', async () => {
  const groups = 40;
  const rounds = isSanitized ? 20 : 50;
  const writers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat();
  const subscribers = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  for (const subscriber of subscribers) {
    for (let group = 0; group < groups; group += 1) subscriber.join('many', `g${group}`, { subscriptionId: `s${group}` });
    await subscriber.waitFor(() => subscriber.syncs.length === groups, 'all syncs');
  }
  const answers = [];
  for (let round = 0; round < rounds; round += 1) {
    for (let group = 0; group < groups; group += 1) answers.push(writers[(round + group) % 2].set('many', `g${group}`, `i${round % 7}`, round));
    if (round % 10 === 0) await delay(0);
  }
  await Promise.all(answers);
  for (const subscriber of subscribers) {
    await subscriber.waitFor(() => subscriber.events.length === groups * rounds, 'all events', 60000);
    const next = new Map(subscriber.syncs.map((sync) => [sync.groupId, sync]));
    for (const envelope of subscriber.events) {
      const last = next.get(envelope.groupId);
      assert.equal(envelope.seq, last.seq + 1);
      assert.ok(envelope.timestamp > last.timestamp);
      next.set(envelope.groupId, envelope);
    }
  }
  await Promise.all([...subscribers, ...writers].map((client) => client.close()));
});
