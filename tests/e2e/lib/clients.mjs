// lib/clients.mjs -- plain WebSocket clients that keep every byte they receive: a subscriber and a worker.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { WebSocket } from 'ws';
import { LIMIT_MS, delay, failure, until } from './weir.mjs';

// A connection whose handshake is under way while a gateway comes or goes may be reset by the kernel (docs/operations.md), and
// anybody tries again then.
const RESETS_MAX = 5;

// How much of the last message a failure shows.
const SHOWN = 400;

// `options.rejectUnauthorized: false` lets a subscriber accept a self-signed certificate.
export class Client {
  closed = null;
  texts = [];
  pongs = [];
  #waiters = [];

  static async open(url, options = {}) {
    for (let left = RESETS_MAX; ; left -= 1) {
      try {
        return await this.connect(url, options);
      } catch (error) {
        if (error.code !== 'ECONNRESET' || left === 0) throw error;
        await delay(20);
      }
    }
  }

  static async connect(url, { protocols, ...options }) {
    const client = new this();
    client.socket = new WebSocket(url, protocols, { perMessageDeflate: false, maxPayload: 0, ...options });
    client.socket.on('message', (data, isBinary) => client.take(data, isBinary));
    client.socket.on('pong', (data) => client.pongs.push(data.toString()));
    client.socket.on('error', (error) => (client.error = error));
    client.closing = new Promise((resolve) => {
      client.socket.once('close', (code, reason) => {
        client.closed = { code, reason: reason.toString() };
        resolve(client.closed);
        client.wake();
      });
    });
    await new Promise((resolve, reject) => {
      client.socket.once('open', resolve);
      client.socket.once('error', reject);
    });
    client.localPort = client.socket._socket.localPort;
    client.remotePort = client.socket._socket.remotePort;
    return client;
  }

  take(data) {
    this.texts.push(data.toString());
    this.wake();
  }

  wake() {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }

  // What came, for a failure to tell.
  received() {
    return `${this.texts.length} messages came${this.texts.length > 0 ? `, the last: ${this.texts.at(-1).slice(0, SHOWN)}` : ''}`;
  }

  // Resolves at the next message or at the close.
  moved() {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  // The first value `find` returns that is not undefined, looked for now and after each message.
  async waitFor(find, what, limitMs = LIMIT_MS) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(failure(`never came: ${what}; ${this.received()}`)), limitMs);
    });
    try {
      for (;;) {
        const value = find();
        if (value !== undefined && value !== false) return value;
        if (this.closed) throw failure(`closed ${JSON.stringify(this.closed)} while waiting for ${what}; ${this.received()}`);
        await Promise.race([this.moved(), late]);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  send(message) {
    this.socket.send(typeof message === 'string' || Buffer.isBuffer(message) ? message : JSON.stringify(message));
  }

  // A ping whose pong is proof that all we sent before it has been read.
  async ping() {
    const mark = randomUUID();
    this.socket.ping(mark);
    await until(() => this.pongs.includes(mark) || this.closed, 'the pong');
    assert.equal(this.closed, null, 'the connection stays open');
  }

  async close() {
    if (this.closed === null) this.socket.close();
    await Promise.race([this.closing, until(() => this.closed, 'the close', 10000).catch(() => this.socket.terminate())]);
  }
}

export class Subscriber extends Client {
  envelopes = [];

  take(data) {
    super.take(data);
    this.envelopes.push(JSON.parse(this.texts[this.texts.length - 1]));
  }

  // `position`: { epoch, since } and `mode`, as they are to be sent.
  join(streamName, groupId, { id, subscriptionId = 's1', ...position } = {}) {
    this.send({ type: 'join', data: { subscriptionId, streamName, groupId, ...(id === undefined ? {} : { id }), ...position } });
  }

  leave(streamName, groupId, subscriptionId = 's1') {
    this.send({ type: 'leave', data: { subscriptionId, streamName, groupId } });
  }

  get syncs() {
    return this.envelopes.filter((envelope) => envelope.event.type === 'sync');
  }

  get events() {
    return this.envelopes.filter((envelope) => envelope.event.type !== 'sync');
  }

  async joined(streamName, groupId, options) {
    const before = this.syncs.length;
    this.join(streamName, groupId, options);
    await this.waitFor(() => this.syncs.length > before, `sync of ${JSON.stringify([streamName, groupId])}`);
    return this.syncs[before];
  }

  // Where a client that has got everything so far goes on.
  get position() {
    const last = this.envelopes.findLast((envelope) => envelope.seq !== undefined && !envelope.conflated?.more);
    return { epoch: last.epoch, since: last.seq };
  }

  async count(number, what = `${number} envelopes`) {
    await this.waitFor(() => this.envelopes.length >= number, what);
    return this.envelopes;
  }
}

// A worker that speaks the wire protocol itself.
export class RawWorker extends Client {
  #results = new Map();
  #handlers = new Map();
  registered = null;
  invocations = [];

  static async open(url, options) {
    const worker = await super.open(url, options);
    await worker.waitFor(() => worker.registered !== null, 'workerregistered');
    return worker;
  }

  take(data) {
    const text = data.toString();
    const message = JSON.parse(text);
    if (message.type === 'workerregistered') this.registered = message;
    if (message.type === 'invocationresult') {
      const resolve = this.#results.get(message.invocation_id);
      this.#results.delete(message.invocation_id);
      if (resolve) resolve({ message, text });
      else this.texts.push(text);
    } else {
      this.texts.push(text);
      if (message.type === 'invokefunction') this.#run(message);
    }
    this.wake();
  }

  #run(message) {
    this.invocations.push(message);
    const handler = this.#handlers.get(message.function_id);
    const answer = handler?.(message);
    if (answer !== undefined) {
      this.send({ type: 'invocationresult', invocation_id: message.invocation_id, function_id: message.function_id, ...answer });
    }
  }

  // handler(message) returns the fields of the answer ({result} or {error} or {}), or undefined for no answer.
  register(id, handler, fields = {}) {
    this.#handlers.set(id, handler);
    this.send({ type: 'registerfunction', id, ...fields });
  }

  // A call that is never answered is a failure of its own, not a test that hangs.
  #answerTo(id) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(failure(`no answer to call ${id}`)), LIMIT_MS);
      // A call nobody waits for must not hold the process.
      timer.unref();
      this.#results.set(id, (answer) => {
        clearTimeout(timer);
        resolve(answer);
      });
      this.closing.then(() => clearTimeout(timer));
    });
  }

  // Sends a call; resolves to {message, text} of its one answer.
  callRaw(functionId, data, fields = {}) {
    const id = fields.invocation_id ?? randomUUID();
    const answer = this.#answerTo(id);
    this.send({ type: 'invokefunction', invocation_id: id, function_id: functionId, data, ...fields });
    return answer;
  }

  // Sends ready text that carries `id` as invocation_id; resolves as callRaw.
  callText(id, text) {
    const answer = this.#answerTo(id);
    this.send(text);
    return answer;
  }

  // The answer's fields beyond type and ids.
  async call(functionId, data, fields) {
    const { message } = await this.callRaw(functionId, data, fields);
    const { type, invocation_id, function_id, ...rest } = message;
    assert.equal(type, 'invocationresult');
    assert.equal(function_id, functionId);
    assert.equal(typeof invocation_id, 'string');
    return rest;
  }

  set(streamName, groupId, itemId, data) {
    return this.call('stream::set', { stream_name: streamName, group_id: groupId, item_id: itemId, data });
  }

  async result(functionId, data) {
    const answer = await this.call(functionId, data);
    assert.equal(answer.error, undefined, JSON.stringify(answer.error));
    return answer.result;
  }
}
