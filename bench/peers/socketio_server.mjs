// socketio_server.mjs -- a broadcast server over socket.io: one process, its own adapter in memory, rooms are groups.
//
// A subscriber emits "join", GROUP and is told "joined"; the publisher emits "pub", GROUP, MESSAGE, and subscribers get "m", MESSAGE.
// Run: node socketio_server.mjs PORT
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const server = createServer();
const io = new Server(server, { transports: ['websocket'], perMessageDeflate: false, httpCompression: false, serveClient: false });

// Each socket keeps its first request otherwise (socket.io's advice on memory).
io.engine.on('connection', (socket) => {
  socket.request = null;
});

io.on('connection', (socket) => {
  socket.on('join', (group) => {
    socket.join(group);
    socket.emit('joined');
  });
  socket.on('pub', (group, message) => {
    io.to(group).emit('m', message);
  });
});
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
