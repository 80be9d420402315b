// What rules do to stock clients: node access.mjs <generation> <websocket address> <token of ann> <token of ben>
//
// The server begins with rules under which ann writes what she owns and ben reads what is in the hall.

import { randomBytes } from "node:crypto"
import { ask, check, run, same, soon } from "./harness.mjs"
import { connect, heads, read, saved, stock, until } from "./client.mjs"
import { encode, open } from "./raw.mjs"
import WebSocket from "ws"

const [generation, address, ann, ben] = process.argv.slice(2)
const { Automerge } = await stock(generation)
const as = token => `${address}?access_token=${encodeURIComponent(token)}`
const write = (handle, words) => handle.change(doc => Automerge.splice(doc, ["text"], doc.text.length, 0, words))

await run("access", async () => {
  const anna = await connect(generation, as(ann))
  const benno = await connect(generation, as(ben))

  // What may be read is found, what may not be is unavailable as if it were not there.
  const hall = anna.create({ text: "tides", room: "hall", owner: "ann" })
  const attic = anna.create({ text: "secret words", room: "attic", owner: "ann" })
  await saved(anna, hall)
  await saved(anna, attic)
  const his = await benno.find(hall.url)
  same(read(his), read(hall), "what may be read is read")
  check((await benno.find(attic.url)) === undefined, "what may not be read is unavailable")
  check(!benno.messages.some(message => `${Buffer.from(message.data ?? [])}`.includes("secret")), "nothing of it was sent")

  // A denied edit stays where it was made; reading goes on, and so does writing elsewhere.
  write(his, ", said ben")
  await his.whenReady()
  write(hall, " and moons")
  await until(his, doc => doc.text.includes("and moons"), "others' edits still come")
  check(read(his).text.includes("said ben"), "his own is still his")
  const own = benno.create({ text: "mine", room: "attic", owner: "ben" })
  await saved(benno, own)
  write(own, ", all mine")
  await saved(benno, own)
  const other = await connect(generation, as(ann))
  same(read(await other.find(hall.url)).text, "tides and moons", "nobody else sees it")
  check(read(hall).text === "tides and moons", "nor does the owner")

  // A document that rules look at, for writing alone, and what was denied arrives by itself.
  const garden = anna.create({ text: "roses", room: "garden", owner: "ann" })
  await saved(anna, garden)
  const plot = await benno.find(garden.url)
  write(plot, " of ben's")
  write(garden, " and thorns")
  await until(plot, doc => doc.text.includes("and thorns"), "an edit of the owner, behind the denied one")
  await ask("grant ben the garden")
  await until(garden, doc => doc.text.includes("of ben's"), "what a document allows that rules look at")

  // Another set of rules, likewise.
  await ask("let ben write")
  await until(hall, doc => doc.text.includes("said ben"), "what was denied is allowed")
  await until(his, doc => doc.text === read(hall).text, "both have the same")
  same(heads(anna, hall), heads(benno, his), "the same changes")

  // And a stricter one: not a word more, while the socket stands.
  const gone = new Promise(done => benno.adapter.on("message", message => message.type === "doc-unavailable" && done()))
  await ask("let ben read nothing")
  await soon(gone, "word that the document is not there any more")
  const before = benno.messages.length
  write(hall, " unseen")
  await saved(anna, hall)
  const told = benno.messages.slice(before).filter(message => message.documentId === hall.documentId && message.data)
  check(told.length === 0, "nothing of it is sent any more")
  check((await connectedStill(benno)) === true, "the socket stands")

  // A token that is revoked ends its sockets, with a code that says so; without one nobody is heard.
  const closed = new Promise(done => benno.adapter.socket.addEventListener("close", event => done(event.code)))
  await ask("revoke ben")
  same(await soon(closed, "the end of the socket"), 4403, "the code of a revoked token")
  for (const url of [address, as("no.such.token"), as(ben)]) {
    const raw = await open(url)
    raw.send(encode({ type: "join", senderId: `raw-${randomBytes(4).toString("hex")}`, peerMetadata: {}, supportedProtocolVersions: ["1"] }))
    same(await raw.end(), 4401, `the code for ${url.slice(0, 40)}`)
    check(raw.got.every(message => message.type === "error"), "nothing but an error is told")
  }

  // In the way that is not seen in addresses.
  const socket = new WebSocket(address, ["tidelog.v1", `tidelog.token.${ann}`])
  await soon(new Promise((done, failed) => socket.on("open", done).on("error", failed)), "a socket by subprotocol")
  same(socket.protocol, "tidelog.v1", "the subprotocol that was chosen")
  socket.close()
})

/** Whether the socket answers. */
async function connectedStill(client) {
  const url = `automerge:${"4NMNnkMhL8jXrdJ9jamS58PAVdXu"}`
  const handle = await client.look(url).catch(() => undefined)
  return handle !== undefined && client.adapter.socket.readyState === 1
}
