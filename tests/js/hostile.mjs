// What no client would say: node hostile.mjs <websocket address>
//
// Each attack has a socket of its own, and after each two stock clients edit a document as before.

import { deflateRawSync } from "node:zlib"
import { ask, check, run, same, say, soon } from "./harness.mjs"
import { connect, read, saved, until } from "./client.mjs"
import { EMPTY, bytes, encode, joined, open } from "./raw.mjs"

const [address] = process.argv.slice(2)
const MIB = 2 ** 20
/** The codes of the end, as the page about the protocol says. */
const [PROTOCOL, MALFORMED, POLICY, LONG] = [1002, 1007, 1008, 1009]

const anna = await connect("2", address)
const ben = await connect("2", address)
const mine = anna.create({ n: 0 })
await saved(anna, mine)
const his = await ben.find(mine.url)
const { documentId } = anna.packages.parseAutomergeUrl(mine.url)
const nowhere = () => anna.packages.parseAutomergeUrl(anna.packages.generateAutomergeUrl()).documentId

const join = { type: "join", senderId: "x", peerMetadata: {}, supportedProtocolVersions: ["1"] }
const sync = raw => ({ type: "sync", senderId: raw.peerId, targetId: raw.serverId, documentId, data: EMPTY })
const nested = depth => Buffer.concat([Buffer.alloc(depth, 0x81), Buffer.of(0)])
/** A sync message with this Bloom filter. */
const filter = parameters => Buffer.from([0x42, 0, 0, 1, 0, parameters.length, ...parameters, 0])
/** A sync message with one change in it. */
const change = chunk => Buffer.concat([Buffer.of(0x42, 0, 0, 0, 1), leb(chunk.length), chunk])
const chunk = (type, body) => Buffer.concat([Buffer.of(0x85, 0x6f, 0x4a, 0x83, 1, 2, 3, 4, type), leb(body.length), body])

function leb(value) {
  const out = []
  do {
    out.push((value % 128) | (value >= 128 ? 128 : 0))
    value = Math.floor(value / 128)
  } while (value > 0)
  return Buffer.from(out)
}

/** Before a join: a name, what is sent, and the codes that may come of it. */
const unjoined = [
  ["garbage", Buffer.alloc(1000, 0xff), [PROTOCOL, MALFORMED]],
  ["nothing", Buffer.alloc(0), [PROTOCOL, MALFORMED]],
  ["a text message", "hello", [PROTOCOL]],
  ["a join in a text message", JSON.stringify(join), [PROTOCOL]],
  ["a number", encode(5), [MALFORMED, PROTOCOL]],
  ["a version that is not spoken", encode({ ...join, supportedProtocolVersions: ["99"] }), [PROTOCOL]],
  ["versions that are no list", encode({ ...join, supportedProtocolVersions: 5 }), [PROTOCOL, MALFORMED]],
  ["a peer id that is no text", encode({ ...join, senderId: 5 }), [MALFORMED]],
  ["a peer id of a megabyte", encode({ ...join, senderId: "x".repeat(MIB) }), [LONG, MALFORMED]],
  ["a deep nest", nested(10_000), [PROTOCOL, MALFORMED]],
  ["a long message", Buffer.alloc(MIB, 0), [LONG]],
  ...[1, 10, 40, encode(join).length - 1].map(at => [`${at} bytes of a join`, encode(join).subarray(0, at), [PROTOCOL]]),
]

/** After it: a name, what is sent, and the codes. */
const unfriendly = [
  ["garbage", () => Buffer.alloc(1000, 0xff), [PROTOCOL, MALFORMED]],
  ["a text message", () => "hello", [PROTOCOL]],
  ["another name", () => ({ ...join, senderId: "another" }), [PROTOCOL]],
  ["a deep nest", () => nested(10_000), [PROTOCOL, MALFORMED]],
  ["a deep nest where nobody looks", raw => Buffer.concat([deep(sync(raw))]), [PROTOCOL, MALFORMED]],
  ["bytes without end", () => Buffer.from([0x5b, 0x7f, ...Array(7).fill(0xff)]), [PROTOCOL, MALFORMED]],
  ["a list without end", () => Buffer.from([0x9a, 0xff, 0xff, 0xff, 0xff]), [PROTOCOL, MALFORMED]],
  ["a document id of a megabyte", raw => ({ ...sync(raw), documentId: "1".repeat(MIB) }), [MALFORMED]],
  ["a document id that is none", raw => ({ ...sync(raw), documentId: "not base58: 0OIl" }), [MALFORMED]],
  ["a document id that is a number", raw => ({ ...sync(raw), documentId: 7 }), [MALFORMED]],
  ["no data", raw => ({ ...sync(raw), data: new Uint8Array() }), [MALFORMED]],
  ["data of another kind", raw => ({ ...sync(raw), data: "text" }), [MALFORMED]],
  ["garbage for Automerge", raw => ({ ...sync(raw), data: Buffer.alloc(1000, 0xff) }), [MALFORMED]],
  ["a filter of no bits", raw => ({ ...sync(raw), data: filter([1, 0, 7, 0]) }), [MALFORMED]],
  ["a filter of many probes", raw => ({ ...sync(raw), data: filter([1, 10, 255, 255, 255, 255, 15, 0, 0]) }), [MALFORMED]],
  ["a change that is garbage", raw => ({ ...sync(raw), data: change(chunk(1, Buffer.alloc(100, 7))) }), [MALFORMED]],
  ["a change that is small only compressed", raw => ({ ...sync(raw), data: change(chunk(2, bomb)) }), [MALFORMED]],
  ["too many stores", raw => ({
    type: "remote-subscription-change", senderId: raw.peerId, targetId: raw.serverId,
    add: Array.from({ length: 10_000 }, (_, n) => `store ${n}`),
  }), [MALFORMED, POLICY]],
  ["a message of 65 MiB", () => Buffer.alloc(65 * MIB, 0x58), [LONG]],
  ...[1, 10, 60, 100].map(at => [`${at} bytes of a message`, raw => encode(sync(raw)).subarray(0, at), [PROTOCOL, MALFORMED]]),
]

const bomb = deflateRawSync(Buffer.alloc(300 * MIB))

/** A message with one more key, whose value is nested. */
function deep(message) {
  const plain = encode(message)
  // The map's length is in the second and third byte.
  const counted = Buffer.from(plain)
  counted.writeUInt16BE(plain.readUInt16BE(1) + 1, 1)
  return Buffer.concat([counted, Buffer.of(0x61, 0x7a), nested(5000)])
}

/** The honest clients go on. */
let rounds = 0
async function goesOn(after) {
  rounds += 1
  mine.change(doc => (doc.n = rounds))
  await until(his, doc => doc.n === rounds, `the others' edits, after ${after}`)
}

async function attacks() {
  for (const [name, message, codes] of unjoined) {
    const raw = await open(address)
    if (typeof message === "string") raw.socket.send(message)
    else raw.send(message)
    ended(`${name} before a join`, await raw.end(), codes)
    await goesOn(name)
  }
  for (const [name, make, codes] of unfriendly) {
    const raw = await joined(address)
    const message = make(raw)
    if (typeof message === "string") raw.socket.send(message)
    else raw.send(message)
    ended(name, await raw.end(), codes)
    await goesOn(name)
  }
}

function ended(name, code, codes) {
  check(codes.includes(code), `${name} is answered by ${codes.join(" or ")}, but it is ${code}`)
}

/** Frames that no WebSocket library sends. A mask of four zero bytes changes nothing. */
async function frames() {
  const masked = (first, length, rest = []) => Buffer.from([first, ...length, 0, 0, 0, 0, ...rest])
  const cases = [
    ["a frame without a mask", Buffer.from([0x82, 1, 0])],
    ["a frame of an exabyte", masked(0x82, [0xff, 0x10, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3])],
    ["a reserved opcode", masked(0x83, [0x80])],
    ["a reserved bit", masked(0xc2, [0x81], [0])],
    ["a long ping", masked(0x89, [0xfe, 0, 200], Array(200).fill(0))],
    ["a continuation of nothing", masked(0x80, [0x81], [0])],
  ]
  for (const [name, frame] of cases) {
    const { ended } = await bytes(address, [frame])
    await soon(ended, `the end of the connection after ${name}`)
    await goesOn(name)
  }
  for (const text of ["nonsense\r\n\r\n", `GET /sync HTTP/1.1\r\nHost: x\r\nX: ${"x".repeat(MIB)}\r\n\r\n`]) {
    const { ended } = await bytes(address, [text], { upgrade: false })
    await soon(ended, "the end of what is no HTTP")
    await goesOn("what is no HTTP")
  }
  // A message in pieces that never ends.
  const raw = await joined(address)
  for (let sent = 0; sent < 70 && raw.socket.readyState === 1; sent++) raw.send(Buffer.alloc(MIB), { fin: false })
  ended("a message in pieces without end", await raw.end(), [LONG])
  await goesOn("pieces")
}

/** What is odd and yet no fault: nobody is disconnected for it. */
async function harmless() {
  const early = await open(address)
  early.send({ type: "sync", senderId: "x", targetId: "y", documentId, data: EMPTY })
  early.send({ ...join, senderId: "early" })
  await early.next("peer")

  const raw = await joined(address)
  raw.send({ ...sync(raw), senderId: "somebody else" })
  raw.send({ type: "a type of tomorrow", senderId: raw.peerId, targetId: raw.serverId })
  raw.send({ type: "ephemeral", senderId: anna.network.peerId, targetId: raw.serverId, documentId, count: 1e9, sessionId: "s", data: encode(1) })
  raw.send({ type: "doc-unavailable", senderId: raw.peerId, targetId: raw.serverId, documentId: nowhere() })
  raw.socket.ping()
  await soon(raw.pong, "a pong")
  same(raw.got, [], "there is nothing to answer")
  raw.request(nowhere())
  await raw.next("doc-unavailable")
  // Known under its id, the document is answered for as to anybody.
  raw.request(documentId)
  same((await raw.next("sync")).documentId, documentId, "an answer")
  for (let n = 0; n < 10_000; n++) raw.request(nowhere())
  await raw.count(10_000, "doc-unavailable")
  await goesOn("ten thousand documents that are not there")
  same(await raw.close(), 1005, "an ordinary end")

  // Many that connect and say nothing, some of them not even that they want a WebSocket.
  const silent = await Promise.all(Array.from({ length: 50 }, () => open(address)))
  const mute = await Promise.all(Array.from({ length: 50 }, () => bytes(address, [], { upgrade: false })))
  await goesOn("many who say nothing")
  for (const each of silent) each.socket.terminate()
  for (const { socket } of mute) socket.destroy()
  await early.close()
}

await run("hostile", async () => {
  const before = await ask("memory")
  for (const part of [attacks, frames, harmless]) {
    await part()
    say({ part: part.name, rounds })
  }
  await saved(anna, mine)
  same([anna.peers, ben.peers], [1, 1], "the others were never disconnected")
  const carl = await connect("1", address)
  same(read(await carl.find(mine.url)), { n: rounds }, "all edits")
  const after = await ask("memory")
  say({ before, after })
  const grown = (after.highest - before.now) / 1024
  check(grown < 512, `memory is bounded: it grew by ${Math.round(grown)} MiB`)
})
