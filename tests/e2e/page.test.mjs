// page.test.mjs -- the page of the stream port in headless Chromium, fed by the host-metrics worker.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { RawWorker } from './lib/clients.mjs';
import { Weir, binDir, until } from './lib/weir.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';

let weir;
let metrics;
let browser;
const complaints = [];

async function openPage(query = '', options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 1000 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(120000);
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (message) => {
    // A connection refused while a gateway is away is the browser's own line.
    if (message.type() === 'error' && !/WebSocket connection/.test(message.text())) complaints.push(message.text());
  });
  await page.goto(`http://127.0.0.1:${weir.streamPort}/${query}`);
  return page;
}

const text = (page, id) => page.textContent(`#${id}`);
const points = (page, item) => page.$eval(`[data-item="${item}"]`, (card) => Number(card.dataset.points));

const newestSeq = async (page) => Number(await text(page, 'fact-seq')); // not a number before the first envelope

async function laterEvents(page, count) {
  const before = await until(() => newestSeq(page), 'an event');
  await until(async () => (await newestSeq(page)) > before + count, `${count} events after ${before}`);
}

// The plot's own pixels, to see that it really draws and moves.
const pixels = (page, item) => page.$eval(`[data-item="${item}"] canvas`, (canvas) => canvas.toDataURL());

before(async () => {
  weir = await Weir.start();
  metrics = spawn(path.join(binDir, 'host-metrics'), ['--interval', '200'], {
    env: { ...process.env, WEIR_SOCKET: path.join(weir.runDir, 'weir.sock') }, stdio: ['ignore', 'ignore', 'pipe'],
  });
  metrics.exited = new Promise((resolve) => metrics.once('close', (code, signal) => resolve({ code, signal })));
  metrics.stderr.on('data', (chunk) => (metrics.errors = (metrics.errors ?? '') + chunk));
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    timeout: 120000,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
});

after(async () => {
  await browser?.close();
  metrics?.kill('SIGTERM');
  const exit = await metrics?.exited;
  await weir?.stop();
  assert.deepEqual(exit, { code: 0, signal: null }, metrics.errors);
});

test('the plots of this host move', async () => {
  const page = await openPage();
  await until(async () => (await text(page, 'status-text')) === 'connected', 'the status says connected');
  for (const item of ['cpu', 'memory', 'disk', 'network']) {
    await until(async () => (await points(page, item)) >= 5, `points of ${item}`);
    assert.notEqual(await page.textContent(`[data-item="${item}"] .card-value`), '–');
  }
  const first = await pixels(page, 'cpu');
  await until(async () => (await pixels(page, 'cpu')) !== first, 'the picture changes');
  assert.equal(await page.isVisible('#host-empty'), false);
  assert.match(await text(page, 'fact-seq'), /^\d+$/);
  assert.match(await text(page, 'fact-epoch'), /^\d+$/);
  await until(async () => Number(await text(page, 'fact-rate')) > 0, 'a rate'); // of the last seconds
  assert.equal(await text(page, 'fact-gaps'), '0');
  await until(async () => (await page.$$('#host-events tr')).length > 3, 'rows of events'); // drawn with the next frame
  await page.context().close();
});

test('host-metrics answers host::info and publishes four items', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const info = await worker.result('host::info', {});
  assert.ok(info.cores >= 1 && info.memory_bytes > 0 && info.uptime_s > 0, JSON.stringify(info));
  assert.equal(typeof info.hostname, 'string');
  const items = await worker.result('stream::list', { stream_name: 'host', group_id: 'local' });
  assert.deepEqual(items.map(({ id }) => id), ['cpu', 'memory', 'disk', 'network']);
  for (const item of items) {
    assert.ok(Math.abs(item.at - Date.now()) < 60000);
    for (const [name, value] of Object.entries(item)) if (name !== 'id') assert.ok(Number.isFinite(value) && value >= 0, `${item.id}.${name}`);
  }
  assert.ok(items[0].percent <= 100 && items[1].used_bytes <= items[1].total_bytes);
  await worker.close();
});

test('any other group can be joined, seen live and left; stream data is never markup', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  await worker.set('chat', 'room', 'm1', { id: 'm1', text: '<img src=x onerror=alert(1)>' });
  const page = await openPage();
  await page.fill('[name="stream"]', 'chat');
  await page.fill('[name="group"]', 'room');
  await page.click('#explore-join');
  await until(async () => (await page.$$('#explore-items tr')).length === 1, 'the snapshot');
  await worker.set('chat', 'room', 'm2', { id: 'm2', text: 'second' });
  await worker.call('stream::delete', { stream_name: 'chat', group_id: 'room', item_id: 'm1' });
  await until(async () => (await page.$$('#explore-events tr')).length === 3, 'sync, create, delete');
  await until(async () => (await text(page, 'explore-items')).includes('second'), 'the new value');
  await until(async () => (await page.$$('#explore-items tr')).length === 1, 'the deleted one is gone');
  assert.equal(await page.$('td img'), null);
  assert.equal(await text(page, 'explore-state'), 'joined chat / room');

  await page.fill('[name="item"]', 'm2');
  await page.press('[name="item"]', 'Enter');
  await until(async () => (await text(page, 'explore-state')) === 'joined chat / room / m2', 'one item is joined');
  // The page says so at once. That the server knows is shown by the sync: an event before it would be a part of it.
  await until(async () => (await page.$$('#explore-events tr')).length === 1, 'its sync');
  await worker.set('chat', 'room', 'other', { id: 'other' });
  await worker.set('chat', 'room', 'm2', { id: 'm2', text: 'third' });
  await until(async () => (await text(page, 'explore-items')).includes('third'), 'the value of the item');
  await until(async () => (await page.$$('#explore-events tr')).length === 2, 'its sync and its update');
  await page.press('#explore-leave', 'Enter');
  await until(async () => (await page.$$('#explore-events tr')).length === 0, 'the view is empty after the leave');
  assert.equal(await text(page, 'explore-state'), 'not joined');
  await worker.set('chat', 'room', 'm2', { id: 'm2', text: 'fourth' });
  await laterEvents(page, 8);
  assert.equal((await page.$$('#explore-events tr')).length, 0);
  await page.context().close();
  await worker.close();
});

test('the page reconnects after its gateway is killed and goes on without a gap in the story', async () => {
  const page = await openPage();
  await until(async () => (await points(page, 'cpu')) >= 3, 'the plots run');
  await page.evaluate(() => {
    window.states = [];
    new MutationObserver(() => window.states.push(document.getElementById('status').dataset.state)).observe(document.getElementById('status'), { attributes: true });
  });
  // By its frames: the table shows the newest events only, and there may be more of them at once than it has rows.
  const received = [];
  page.on('websocket', (socket) => socket.on('framereceived', ({ payload }) => received.push(JSON.parse(payload))));
  for (const pid of weir.gateways()) process.kill(pid, 'SIGKILL');
  await until(async () => (await page.evaluate(() => window.states)).includes('waiting'), 'the status says that the connection is lost');
  await until(async () => (await text(page, 'status-text')) === 'connected', 'connected again');
  await until(() => received.some(({ event, streamName }) => event.type === 'resumed' && streamName === 'host'), 'it goes on from where it was');
  await laterEvents(page, 12);
  assert.ok(Number(await text(page, 'fact-reconnects')) >= 1);
  assert.equal(await text(page, 'fact-gaps'), '0');
  await page.context().close();
});

test('dark, narrow and accessible: no sideways scroll, every control and plot has a name', async () => {
  const page = await openPage('?stream=host&group=local', { viewport: { width: 380, height: 800 }, colorScheme: 'dark' });
  await until(async () => (await page.$$('#explore-items tr')).length === 4, 'a linked group is joined');
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.click('#theme');
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), dark);
  const nameless = await page.$$eval('button, input, [role="img"], [role="region"]', (elements) =>
    elements.filter((element) => !(element.ariaLabel || element.textContent.trim() || element.labels?.[0]?.textContent.trim())).map((element) => element.outerHTML));
  assert.deepEqual(nameless, []);
  assert.equal(await page.getAttribute('#status', 'aria-live'), 'polite');
  await page.context().close();
});

test('nothing complained: no script error, no violated content policy', () => {
  assert.deepEqual(complaints, []);
});
