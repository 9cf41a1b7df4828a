// lib/sse.mjs -- server-sent events over a plain socket, taken apart as the HTML standard says, so that every byte of head and
// body can be looked at.
import assert from 'node:assert/strict';
import net from 'node:net';
import tls from 'node:tls';
import { until } from './weir.mjs';

export class EventStream {
  head = null;
  status = null;
  blocks = []; // each block of lines up to an empty one: { fields: [[name, value]...], comments: [text] }
  ended = false;
  closed = false;
  error = null;
  #rest = '';

  // `request`: the whole head, or made of `target`, `method` and `headers`. `isTls`: any certificate will do.
  static async open(port, target, { method = 'GET', headers = {}, version = '1.1', request, isTls = false, reads = true } = {}) {
    const stream = new this();
    stream.socket = isTls ? tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false }) : net.connect(port, '127.0.0.1');
    stream.socket.setEncoding('utf8');
    stream.socket.on('data', (text) => stream.#take(text));
    stream.socket.on('end', () => (stream.ended = true));
    stream.socket.on('error', (error) => (stream.error = error));
    stream.socket.on('close', () => (stream.closed = true));
    await new Promise((resolve, reject) => {
      stream.socket.once(isTls ? 'secureConnect' : 'connect', resolve);
      stream.socket.once('error', reject);
    });
    stream.localPort = stream.socket.localPort;
    stream.remotePort = stream.socket.remotePort;
    const lines = Object.entries({ Host: 'h', ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
    stream.socket.write(request ?? `${method} ${target} HTTP/${version}\r\n${lines.join('')}\r\n`);
    if (reads) await until(() => stream.head !== null || stream.closed, `an answer to ${target}`);
    else stream.socket.pause();
    return stream;
  }

  #take(text) {
    this.#rest += text;
    if (this.head === null) {
      const end = this.#rest.indexOf('\r\n\r\n');
      if (end < 0) return;
      this.head = this.#rest.slice(0, end + 2);
      this.status = Number(/^HTTP\/1\.1 (\d+)/.exec(this.head)[1]);
      this.#rest = this.#rest.slice(end + 4);
    }
    if (this.status !== 200) return;
    for (let end; (end = this.#rest.indexOf('\n\n')) >= 0; this.#rest = this.#rest.slice(end + 2)) {
      const lines = this.#rest.slice(0, end).split('\n');
      this.blocks.push({
        comments: lines.filter((line) => line.startsWith(':')),
        fields: lines.filter((line) => !line.startsWith(':')).map((line) => /^([^:]*): ?(.*)$/s.exec(line).slice(1)),
      });
    }
  }

  get body() {
    return this.#rest;
  }

  header(name) {
    return new RegExp(`^${name}: (.*)\r$`, 'im').exec(this.head)?.[1];
  }

  // What an EventSource would have dispatched: { event, id, data }.
  get dispatched() {
    return this.blocks.map(({ fields }) => Object.fromEntries(fields)).filter(({ data }) => data !== undefined);
  }

  get envelopes() {
    return this.dispatched.filter(({ event }) => event === undefined).map(({ data }) => JSON.parse(data));
  }

  get lastId() {
    return this.blocks.flatMap(({ fields }) => fields).filter(([name]) => name === 'id').at(-1)?.[1];
  }

  get retries() {
    return this.blocks.flatMap(({ fields }) => fields).filter(([name]) => name === 'retry').map(([, value]) => Number(value));
  }

  async count(number, what = `${number} envelopes`) {
    await until(() => {
      if (this.closed && this.envelopes.length < number) assert.fail(`closed with ${this.envelopes.length} while waiting for ${what}`);
      return this.envelopes.length >= number;
    }, what).catch((error) => assert.fail(`${error.message}, after ${this.envelopes.length}, the last ${JSON.stringify(this.envelopes.at(-1))?.slice(0, 300)}`));
    return this.envelopes;
  }

  async end(what = 'the end of the stream') {
    await until(() => this.ended || this.closed, what);
  }

  async close() {
    this.socket.destroy();
    await until(() => this.closed, 'the close');
  }
}
