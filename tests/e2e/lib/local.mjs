// lib/local.mjs -- libweir's side of run_dir/weir.sock (shm/wire.h) in JavaScript: frames of one msgpack array, as few kinds of
// values as the messages have.
import assert from 'node:assert/strict';
import net from 'node:net';
import path from 'node:path';
import { once } from 'node:events';
import { until } from './weir.mjs';

export const TYPE = {
  REFUSED: 3, HELLO: 4, WELCOME: 5, FUNCTION_REGISTER: 23, FUNCTION_REJECTED: 25, CALL: 30, INVOKE: 31, RESULT: 32,
  TRIGGER_TYPE_REGISTER: 40, TRIGGER_TYPE_UNREGISTER: 41, TRIGGER_REGISTER: 42, TRIGGER_UNREGISTER: 43, TRIGGER_RESULT: 44, TRIGGER_BIND: 45, TRIGGER_UNBIND: 46,
};
const WIRE_VERSION = 1;

function encodeValue(value) {
  if (value === null || value === undefined) return Buffer.from([0xc0]);
  if (typeof value === 'number') {
    const bytes = Buffer.alloc(5, 0xce);
    bytes.writeUInt32BE(value, 1);
    return bytes;
  }
  const text = Buffer.from(value);
  const head = Buffer.alloc(5, 0xc6);
  head.writeUInt32BE(text.length, 1);
  return Buffer.concat([head, text]);
}

// A value and where the next one starts.
function decodeValue(bytes, at) {
  const first = bytes[at];
  if (first < 0x80) return [first, at + 1];
  if (first === 0xc0) return [null, at + 1];
  if (first >= 0xcc && first <= 0xcf) {
    const size = 1 << (first - 0xcc);
    return [Number(BigInt(`0x${bytes.subarray(at + 1, at + 1 + size).toString('hex')}`)), at + 1 + size];
  }
  const isFixed = first >= 0xa0 && first < 0xc0;
  const size = isFixed ? 0 : 1 << ((first - (first >= 0xd9 ? 0xd9 : 0xc4)));
  assert.ok(isFixed || (first >= 0xc4 && first <= 0xc6) || (first >= 0xd9 && first <= 0xdb), `msgpack ${first}`);
  const length = isFixed ? first & 31 : bytes.readUIntBE(at + 1, size);
  const start = at + 1 + size;
  return [bytes.subarray(start, start + length).toString(), start + length];
}

function decodeArray(bytes) {
  const isShort = bytes[0] >= 0x90 && bytes[0] < 0xa0;
  let at = isShort ? 1 : 3;
  const values = [];
  for (let left = isShort ? bytes[0] & 15 : bytes.readUInt16BE(1); left > 0; left -= 1) {
    const [value, end] = decodeValue(bytes, at);
    values.push(value);
    at = end;
  }
  return values;
}

export class LocalWorker {
  messages = [];
  isClosed = false;
  #pending = Buffer.alloc(0);

  // Connects, says hello and waits for the welcome or the refusal. `previous`: the worker this one was.
  static async open(weir, { name = 'local', metadata = { name }, namespace = null, previous } = {}) {
    const worker = new LocalWorker();
    worker.socket = net.connect(path.join(weir.runDir, 'weir.sock'));
    worker.socket.on('data', (chunk) => worker.#take(chunk));
    worker.socket.on('error', () => {});
    worker.socket.on('close', () => (worker.isClosed = true));
    await once(worker.socket, 'connect');
    worker.send(TYPE.HELLO, [WIRE_VERSION, name, JSON.stringify(metadata), namespace, previous?.id, previous?.token]);
    const first = await until(() => worker.messages[0], 'the welcome');
    if (first.type === TYPE.WELCOME) [, worker.id, worker.token] = first.fields;
    return worker;
  }

  #take(chunk) {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= 4 && this.#pending.length >= 4 + this.#pending.readUInt32LE(0)) {
      const end = 4 + this.#pending.readUInt32LE(0);
      this.messages.push({ type: this.#pending.readUInt16LE(4), id: this.#pending.readBigUInt64LE(8), fields: decodeArray(this.#pending.subarray(16, end)) });
      this.#pending = this.#pending.subarray(end);
    }
  }

  send(type, fields, id = 0n) {
    const body = Buffer.concat([Buffer.from([0x90 | fields.length]), ...fields.map(encodeValue)]);
    const head = Buffer.alloc(16);
    head.writeUInt32LE(12 + body.length, 0);
    head.writeUInt16LE(type, 4);
    head.writeBigUInt64LE(id, 8);
    this.socket.write(Buffer.concat([head, body]));
  }

  of(type) {
    return this.messages.filter((message) => message.type === type);
  }

  next(type, number = 1) {
    return until(() => this.of(type)[number - 1], `message ${number} of type ${type}`).catch((error) => {
      error.message += `\ncame: ${this.messages.map(({ type: each, fields }) => `${each} ${JSON.stringify(fields)}`).join('; ').slice(0, 2000)}`;
      throw error;
    });
  }

  register(id) {
    this.send(TYPE.FUNCTION_REGISTER, [0, null, id, null, null, null, null]);
  }

  answer(invocation, result) {
    this.send(TYPE.RESULT, [JSON.stringify(result), null, null, null], invocation.id);
  }

  close() {
    this.socket.destroy();
  }
}
