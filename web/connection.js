// connection.js -- one WebSocket to the stream port that keeps itself and its subscriptions alive.
//
// Events: 'state' {state: connecting|connected|waiting, retryMs}, 'envelope' {subscription, envelope}.
// Reconnects with back-off (0.5 s doubling to 8 s, with jitter) and joins again with the same subscription ids and the position
// of each one's last envelope; the server goes on from there, or answers with a fresh sync, so a subscriber never has to guess
// what it missed.

const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 8000;

export class Connection extends EventTarget {
  #url;
  #socket = null;
  #subscriptions = new Map();
  #positions = new Map(); // of a subscription: { epoch, since }
  #attempt = 0;
  #timer = 0;
  #nextId = 1;
  opens = 0;

  constructor(url) {
    super();
    this.#url = url;
    addEventListener('online', () => this.#retryNow());
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.#retryNow();
    });
    this.#open();
  }

  // Subscribes to a group, or to one item of it; returns the subscription, which is also what leave() takes.
  join(streamName, groupId, id = null) {
    const subscription = { subscriptionId: `page-${this.#nextId++}`, streamName, groupId, id };
    this.#subscriptions.set(subscription.subscriptionId, subscription);
    this.#send('join', subscription);
    return subscription;
  }

  leave(subscription) {
    this.#subscriptions.delete(subscription.subscriptionId);
    this.#positions.delete(subscription);
    this.#send('leave', subscription);
  }

  #send(type, data) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, data }));
  }

  #announce(state, retryMs = 0) {
    this.dispatchEvent(new CustomEvent('state', { detail: { state, retryMs } }));
  }

  #open() {
    this.#announce('connecting');
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.addEventListener('open', () => {
      this.#attempt = 0;
      this.opens += 1;
      this.#announce('connected');
      for (const subscription of this.#subscriptions.values()) {
        this.#send('join', { ...subscription, ...this.#positions.get(subscription) });
      }
    });
    socket.addEventListener('message', (event) => this.#deliver(event.data));
    socket.addEventListener('close', () => this.#wait());
  }

  #wait() {
    const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** this.#attempt++);
    const retryMs = ceiling * (0.7 + 0.3 * Math.random());
    this.#announce('waiting', retryMs);
    this.#timer = setTimeout(() => this.#open(), retryMs);
  }

  #retryNow() {
    if (this.#socket?.readyState !== WebSocket.CLOSED) return;
    clearTimeout(this.#timer);
    this.#open();
  }

  // Of conflated events only the last says where the subscription is; until then it is where it was before them.
  #note(subscription, { epoch, seq, conflated, event }) {
    if (event.type === 'unauthorized' || epoch === undefined) return;
    this.#positions.set(subscription, { epoch, since: conflated?.more ? conflated.since : seq });
  }

  // The envelope names no subscription: it goes to every one that matches (group, or the same item).
  #deliver(text) {
    let envelope;
    try {
      envelope = JSON.parse(text);
    } catch {
      return;
    }
    if (envelope?.type !== 'stream' || typeof envelope.event?.type !== 'string') return;
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.streamName !== envelope.streamName || subscription.groupId !== envelope.groupId) continue;
      const isSync = envelope.event.type === 'sync';
      if (subscription.id !== null ? subscription.id !== envelope.id : isSync && envelope.id !== null) continue;
      this.#note(subscription, envelope);
      this.dispatchEvent(new CustomEvent('envelope', { detail: { subscription, envelope } }));
    }
  }
}
