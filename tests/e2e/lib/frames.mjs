// lib/frames.mjs -- WebSocket by hand (RFC 6455 section 5), for what no well-behaved library would send, and for reading frames
// byte by byte at one's own pace.
import net from 'node:net';
import tls from 'node:tls';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { LIMIT_MS, until } from './weir.mjs';

export const TEXT = 1;
export const BINARY = 2;
export const CLOSE = 8;
export const PING = 9;
export const PONG = 10;

// One client frame. `declared` lies about the length; `masked: false` breaks the rule of section 5.1. `key` zero makes
// bytes that follow the frame plain, for payloads sent in pieces.
export function frame(payload, { opcode = TEXT, fin = true, masked = true, declared, reserved = 0, key = randomBytes(4) } = {}) {
  const body = Buffer.from(payload);
  const length = declared ?? body.length;
  const head = [(fin ? 0x80 : 0) | (reserved << 4) | opcode];
  const mask = masked ? 0x80 : 0;
  let header;
  if (length < 126) header = Buffer.from([...head, mask | length]);
  else if (length < 65536) header = Buffer.from([...head, mask | 126, length >> 8, length & 255]);
  else {
    header = Buffer.alloc(10);
    header[0] = head[0];
    header[1] = mask | 127;
    header.writeBigUInt64BE(BigInt(length), 2);
  }
  if (!masked) return Buffer.concat([header, body]);
  for (let index = 0; index < body.length; index += 1) body[index] ^= key[index & 3];
  return Buffer.concat([header, key, body]);
}

export function handshake(path = '/', { headers = {} } = {}) {
  const all = {
    Host: '127.0.0.1', Upgrade: 'websocket', Connection: 'Upgrade', 'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': randomBytes(16).toString('base64'), ...headers,
  };
  return `GET ${path} HTTP/1.1\r\n${Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`;
}

export class RawSocket {
  chunks = [];
  pending = Buffer.alloc(0);
  frames = [];
  head = null;
  isClosed = false;

  // `secure`: over TLS, any certificate.
  static async connect(port, { host = '127.0.0.1', secure = false, highWaterMark } = {}) {
    const raw = new RawSocket();
    raw.socket = secure ? tls.connect({ port, host, rejectUnauthorized: false }) : net.connect({ port, host, highWaterMark });
    raw.socket.on('error', (error) => (raw.error = error));
    raw.socket.on('close', () => (raw.isClosed = true));
    raw.socket.on('data', (chunk) => raw.#take(chunk));
    await once(raw.socket, secure ? 'secureConnect' : 'connect');
    raw.localPort = raw.socket.localPort;
    raw.remotePort = raw.socket.remotePort;
    return raw;
  }

  static async open(port, path, options = {}) {
    const raw = await RawSocket.connect(port, options);
    raw.write(handshake(path, options));
    await until(() => raw.head !== null || raw.isClosed, 'the 101 answer');
    if (!/^HTTP\/1\.1 101 /.test(raw.head ?? '')) throw new Error(`no upgrade: ${raw.head}`);
    return raw;
  }

  #take(chunk) {
    this.pending = this.pending.length === 0 ? chunk : Buffer.concat([this.pending, chunk]);
    if (this.head === null) {
      const end = this.pending.indexOf('\r\n\r\n');
      if (end < 0) return;
      this.head = this.pending.subarray(0, end + 4).toString('latin1');
      this.pending = this.pending.subarray(end + 4);
      if (!this.head.startsWith('HTTP/1.1 101')) return;
      this.isUpgraded = true;
    }
    if (this.isUpgraded) this.#parse();
  }

  #parse() {
    let offset = 0;
    for (;;) {
      const rest = this.pending.length - offset;
      if (rest < 2) break;
      const [first, second] = [this.pending[offset], this.pending[offset + 1]];
      let length = second & 127;
      let header = 2;
      if (length === 126) {
        if (rest < 4) break;
        length = this.pending.readUInt16BE(offset + 2);
        header = 4;
      } else if (length === 127) {
        if (rest < 10) break;
        length = Number(this.pending.readBigUInt64BE(offset + 2));
        header = 10;
      }
      if (rest < header + length) break;
      const payload = Buffer.from(this.pending.subarray(offset + header, offset + header + length));
      this.frames.push({ opcode: first & 15, fin: (first & 0x80) !== 0, reserved: (first >> 4) & 7, isMasked: (second & 0x80) !== 0, header, payload });
      offset += header + length;
    }
    if (offset > 0) this.pending = Buffer.from(this.pending.subarray(offset));
  }

  write(bytes) {
    if (!this.isClosed) this.socket.write(bytes);
  }

  send(message) {
    this.write(frame(typeof message === 'string' ? message : JSON.stringify(message)));
  }

  get texts() {
    return this.frames.filter(({ opcode }) => opcode === TEXT).map(({ payload }) => payload.toString());
  }

  // The close code the server sent, if it did.
  get closeCode() {
    const close = this.frames.find(({ opcode }) => opcode === CLOSE);
    return close && close.payload.length >= 2 ? close.payload.readUInt16BE(0) : undefined;
  }

  ended(what = 'the server ends the connection', limitMs = LIMIT_MS) {
    return until(() => this.isClosed || this.socket.readableEnded, what, limitMs);
  }

  destroy() {
    this.socket.destroy();
  }

  reset() {
    reset(this.socket);
  }
}

// Ends with a reset. Once the server has ended the connection node has begun to end it, too; to reset it then leaves node (20.20)
// with a handle that it waits for in vain when the process is to end.
export function reset(socket) {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}
