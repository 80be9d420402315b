// A socket that says whatever it is told to: no client, and no friend of the server.

import { connect as connectTcp } from "node:net"
import { randomBytes } from "node:crypto"
import { Encoder, decode } from "cbor-x"
import WebSocket from "ws"
import { check, soon } from "./harness.mjs"

const encoder = new Encoder({ tagUint8Array: false, useRecords: false })

/** What a stock client would send. */
export const encode = message => encoder.encode(message)

/** Opens a WebSocket. What comes and how it ends is kept. */
export async function open(address) {
  const socket = new WebSocket(address, { perMessageDeflate: false, maxPayload: 2 ** 30 })
  const raw = new Raw(socket)
  await soon(new Promise((done, failed) => socket.on("open", done).on("error", failed)), "a socket")
  return raw
}

/** Opens one and joins. */
export async function joined(address, peerId = `raw-${randomBytes(6).toString("hex")}`) {
  const raw = await open(address)
  raw.peerId = peerId
  raw.send({ type: "join", senderId: peerId, peerMetadata: {}, supportedProtocolVersions: ["1"] })
  const peer = await raw.next("peer")
  check(peer.targetId === peerId, "the answer is to this peer")
  raw.serverId = peer.senderId
  return raw
}

class Raw {
  got = []
  #look = () => {}

  constructor(socket) {
    this.socket = socket
    socket.on("message", data => {
      this.got.push(decode(data))
      this.#look()
    })
    this.closed = new Promise(done => socket.on("close", code => done(code)))
    this.pong = new Promise(done => socket.on("pong", done))
    // A server may hang up while a long message is being sent.
    socket.on("error", () => {})
  }

  /** Sends a message, or bytes as they are. */
  send(message, options) {
    this.socket.send(message instanceof Uint8Array ? message : encode(message), options)
  }

  /** Asks about a document, as a client that has none of it. */
  request(documentId, data = EMPTY, type = "request") {
    this.send({ type, senderId: this.peerId, targetId: this.serverId, documentId, data })
  }

  /** The next message of a type, those that came already counted in. */
  async next(type) {
    return soon(new Promise(done => {
      this.#look = () => {
        const at = this.got.findIndex(message => message.type === type)
        if (at >= 0) done(this.got.splice(at, 1)[0])
      }
      this.#look()
    }), `a message ${type}`)
  }

  /** Waits until so many have come. */
  async count(number, type) {
    const holds = () => this.got.filter(message => message.type === type).length >= number
    await soon(new Promise(done => {
      this.#look = () => holds() && done()
      this.#look()
    }), `${number} messages ${type}`)
  }

  /** How the server ended it. */
  end() {
    return soon(this.closed, "the end of the connection")
  }

  close() {
    this.socket.close()
    return this.end()
  }
}

/** The first sync message of one who has nothing. */
export const EMPTY = Uint8Array.of(0x42, 0, 0, 1, 0, 0, 0, 2, 2, 0x84)

/** Bytes straight into the port; resolves with what came back when the server has hung up. */
export async function bytes(address, parts, { upgrade = true } = {}) {
  const { hostname, port, pathname, host } = new URL(address)
  const socket = connectTcp(Number(port), hostname)
  const chunks = []
  socket.on("data", chunk => chunks.push(chunk))
  socket.on("error", () => {})
  const ended = new Promise(done => socket.on("close", () => done(Buffer.concat(chunks))))
  if (upgrade) {
    const key = randomBytes(16).toString("base64")
    socket.write(
      `GET ${pathname} HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
        `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
    )
    await soon(new Promise(done => socket.once("data", done)), "an answer to the upgrade")
  }
  for (const part of parts) socket.write(part)
  return { socket, ended }
}
