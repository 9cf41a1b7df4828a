// lib/wal.mjs -- writes log directories byte by byte, from the drawing in broker/wal_format.h and independent of weir's own code.
import fs from 'node:fs';
import path from 'node:path';

export const BLOCK = 4096;
const KINDS = { set: 1, delete: 2, event: 3, group: 4, item: 5, end: 6 };
const EVENTS = { sync: 1, create: 2, update: 3, delete: 4, event: 5 };
const END_MARK = 0xd36b5a93c72de5b9n;

const crcTable = Array.from({ length: 256 }, (_, byte) => {
  let sum = byte;
  for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? (sum >>> 1) ^ 0x82f63b78 : sum >>> 1;
  return sum >>> 0;
});

function crc32c(...parts) {
  let sum = 0xffffffff;
  for (const part of parts) for (const byte of part) sum = crcTable[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

const u64 = (...values) => {
  const bytes = Buffer.alloc(8 * values.length);
  values.forEach((value, index) => bytes.writeBigUInt64LE(BigInt(value), 8 * index));
  return bytes;
};
const alignUp = (bytes, to) => Math.ceil(bytes / to) * to;

export const logName = (number) => `log-${String(number).padStart(20, '0')}`;
export const snapshotName = (number) => `snapshot-${String(number).padStart(20, '0')}`;

function fileHeader({ kind, logId, number, bytes = 0, firstSeq = 0 }) {
  const block = Buffer.alloc(BLOCK);
  block.write(kind === 'log' ? 'weirLog1' : 'weirSnp1', 'latin1');
  u64(logId, number, 1, 1700000000000n, bytes, firstSeq).copy(block, 8);
  block.writeUInt32LE(crc32c(block.subarray(0, 56)), 56);
  return block;
}

// { kind, event, step, epoch, seq, timestamp, origin, request, stream, group, item, type, value }: what is missing is not there.
function recordBytes(record) {
  const has = (name) => (record[name] === undefined ? 0 : 1);
  const names = ['stream', 'group', 'item', 'type'].map((name) => Buffer.from(record[name] ?? ''));
  const value = Buffer.from(record.value ?? '');
  const header = Buffer.alloc(64);
  const length = alignUp(64 + names.reduce((sum, name) => sum + name.length, 0) + value.length, 8);
  header.writeUInt32LE(length, 0);
  header[4] = KINDS[record.kind];
  header[5] = EVENTS[record.event] ?? 0;
  header[6] = record.step ?? 2;
  header[7] = has('item') + 2 * has('type') + 4 * has('value');
  u64(record.epoch ?? 0, record.seq ?? 0, record.timestamp ?? 0, record.origin ?? record.created ?? 0, record.request ?? record.modified ?? 0).copy(header, 8);
  names.forEach((name, index) => header.writeUInt16LE(name.length, 48 + 2 * index));
  header.writeUInt32LE(value.length, 56);
  const bytes = Buffer.concat([header, ...names, value]);
  return Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]);
}

function frameBytes({ logId, number, offset, seq, time, records }) {
  const payload = Buffer.concat(records.map(recordBytes));
  const frame = Buffer.alloc(alignUp(48 + payload.length + 8, BLOCK));
  const place = u64(logId, number, offset);
  payload.copy(frame, 48);
  u64(BigInt(seq) ^ END_MARK).copy(frame, frame.length - 8);
  frame.write('wFrm', 'latin1');
  frame.writeUInt32LE(crc32c(place, payload), 8);
  frame.writeUInt32LE(payload.length, 12);
  u64(seq, time).copy(frame, 16);
  frame.writeUInt32LE(records.length, 32);
  let zeros = 0;
  for (let at = 0; at < frame.length; at += 512) zeros += frame.subarray(at, at + 512).every((byte) => byte === 0) ? 1 : 0;
  frame.writeUInt32LE(zeros, 36);
  frame.writeUInt32LE(crc32c(place, frame.subarray(8, 48)), 4);
  return frame;
}

// One log: segments are made as their frames come, each a file of `segmentBytes`.
export class Wal {
  constructor(directory, { logId = 0x1122334455667788n, segment = 1, segmentBytes = 256 * 1024 } = {}) {
    Object.assign(this, { directory, logId, segmentBytes, number: segment - 1, seq: 0, time: 1700000000000, groups: new Map(), frames: [] });
    fs.mkdirSync(directory, { recursive: true });
    this.startSegment();
  }

  startSegment() {
    this.number++;
    this.offset = BLOCK;
    this.file = path.join(this.directory, logName(this.number));
    const bytes = Buffer.alloc(this.segmentBytes);
    fileHeader({ kind: 'log', logId: this.logId, number: this.number, bytes: this.segmentBytes }).copy(bytes);
    fs.writeFileSync(this.file, bytes);
  }

  // The record of a write, numbered as a broker would. `value` is a JS value.
  write(kind, stream, group, item, value, more = {}) {
    const key = JSON.stringify([stream, group]);
    const numbers = this.groups.get(key) ?? { seq: 0, timestamp: 1700000000000 };
    numbers.seq++;
    numbers.timestamp += 2;
    this.groups.set(key, numbers);
    return {
      kind, event: kind === 'set' ? 'create' : kind, stream, group, item, epoch: 1700000000000000n, ...numbers,
      value: value === undefined ? undefined : JSON.stringify(value), ...more,
    };
  }

  // Appends a frame; { file, number, offset, bytes, seq }.
  append(records) {
    const frame = { logId: this.logId, number: this.number, offset: this.offset, seq: ++this.seq, time: ++this.time, records };
    const bytes = frameBytes(frame);
    const fd = fs.openSync(this.file, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, this.offset);
    fs.closeSync(fd);
    this.offset += bytes.length;
    const written = { file: this.file, name: logName(this.number), number: this.number, offset: frame.offset, bytes: bytes.length, seq: frame.seq };
    this.frames.push(written);
    return written;
  }
}

// A snapshot `number` with one frame of records, WAL_END added.
export function writeSnapshot(directory, { logId = 0x1122334455667788n, number, records, nextSeq, firstSeq = nextSeq }) {
  const frame = frameBytes({ logId, number, offset: BLOCK, seq: 1, time: 1700000000000, records: [...records, { kind: 'end', step: 0, seq: nextSeq }] });
  fs.writeFileSync(path.join(directory, snapshotName(number)), Buffer.concat([fileHeader({ kind: 'snapshot', logId, number, firstSeq }), frame]));
}

export function flipBit(file, offset, bit = 0) {
  const fd = fs.openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  fs.readSync(fd, byte, 0, 1, offset);
  byte[0] ^= 1 << bit;
  fs.writeSync(fd, byte, 0, 1, offset);
  fs.closeSync(fd);
}

export function zero(file, offset, bytes) {
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, Buffer.alloc(bytes), 0, bytes, offset);
  fs.closeSync(fd);
}
