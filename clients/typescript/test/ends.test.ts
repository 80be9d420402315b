// What is waited for ends: with the client, with the network, and whatever becomes of the document.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import type { DocumentId } from "@automerge/automerge-repo"
import type { QuerySnapshot } from "../src/index.js"
import { urlOf } from "../src/ids.js"
import { Server, skip, soon, Watch } from "./server.js"

interface Note {
  text: string
}

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

const never = () => new Promise<string>(() => {})

test("nothing waits for a token that never comes once the network goes or the client is closed", { skip }, async () => {
  let isAsked = () => {}
  const asked = new Promise<void>(done => (isAsked = done))
  let tokens = never
  const client = server.client({
    token: async () => {
      isAsked()
      return await tokens()
    },
  })
  const notes = client.collection<Note>("tokens")
  const ref = await notes.add({ text: "a" })
  const result = notes.get()
  await soon(asked, "a token is asked for")
  client.disableNetwork()
  assert.equal((await soon(result, "the cache answers")).size, 1)
  tokens = async () => "any"
  client.enableNetwork()
  await soon(ref.whenSynced(), "it is on the server with the next token")

  tokens = never
  const ended = [ref.delete(), client.authenticate()].map(work => assert.rejects(work, { code: "E0406" }))
  await new Promise(done => setTimeout(done, 50))
  await soon(client.close(), "it is closed")
  await soon(Promise.all(ended), "all has ended")
})

test("whoever waits for a document that the application takes out of the repo is told that it ended", { skip }, async () => {
  const client = server.client()
  client.disableNetwork()
  const ref = await client.collection<Note>("dropped").add({ text: "a" })
  const waiting = [ref.whenSynced(), client.whenSynced()]
  client.repo.delete(ref.id)
  await soon(Promise.all(waiting), "nothing is waited for")
})

test("a deletion goes on though the document leaves a listener's result meanwhile", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const made = await other.collection<Note>("leaving").add({ text: "a" })
  await soon(made.whenSynced(), "it is on the server")
  const seen = new Watch<QuerySnapshot<Note>>()
  const all = one.collection<Note>("leaving")
  all.where("text", "==", "a").onSnapshot({ includeMetadataChanges: true }, seen.take)
  await seen.until(snap => snap.size === 1 && !snap.metadata.fromCache, "the document")
  const request = one.connection.request.bind(one.connection)
  let go = () => {}
  const gone = new Promise<void>(done => (go = done))
  one.connection.request = async (path, init) => {
    if (init?.method === "DELETE") await gone
    return await request(path, init)
  }
  const deleted = all.doc(made.id).delete()
  await made.change(doc => void (doc.text = "b"))
  await soon(made.whenSynced(), "it is another now")
  // A later document says that the listener has heard of that.
  await other.collection<Note>("leaving").add({ text: "a" })
  await seen.until(snap => snap.size === 1 && snap.docs[0]?.id !== made.id, "it has left")
  const synced = one.whenSynced().then(() => "synced")
  assert.equal(await Promise.race([synced, new Promise(done => setTimeout(done, 100, "waits"))]), "waits")
  assert.equal((await all.get()).size, 1, "it is hidden still")
  go()
  await soon(Promise.all([deleted, synced]), "it is deleted")
})

test("what the application's own callbacks throw stops nothing here", { skip }, async () => {
  const thrown: unknown[] = []
  const later = globalThis.queueMicrotask
  globalThis.queueMicrotask = work => later(() => {
    try {
      work()
    } catch (error) {
      thrown.push(error)
    }
  })
  try {
    const client = server.client()
    const mine = new Error("mine")
    client.onStatus(() => {
      throw mine
    })
    const ref = await client.collection<Note>("thrown").add({ text: "a" })
    await soon(ref.whenSynced(), "it is on the server")
    await soon(client.close(), "it is closed")
    assert.ok(client.connection.isClosed)
    assert.ok(thrown.length > 0 && thrown.every(error => error === mine), String(thrown))
  } finally {
    globalThis.queueMicrotask = later
  }
})

test("a document that is told is held, however many are open here", { skip }, async () => {
  const client = server.client()
  client.disableNetwork()
  const { holdings } = client
  for (let n = 0; n < 10_000; n += 1) holdings.hold("many", `shown${n}` as DocumentId).shown = 1
  const told = "4NMNnkMhL8jXrdJ9jamS58PAVdXu" as DocumentId
  const held = holdings.tell("many", told, { id: urlOf(told), heads: ["00".repeat(32)], value: {}, position: 1 }, false)
  assert.equal(holdings.find(told), held)
})

test("an edit of a document that was deleted meanwhile reaches it once it is restored", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const ref = await one.collection<Note>("restored").add({ text: "a" })
  await soon(ref.whenSynced(), "it is on the server")
  one.disableNetwork()
  await ref.change(doc => void (doc.text = "b"))
  await soon(other.collection<Note>("restored").doc(ref.id).delete(), "it is deleted")
  one.enableNetwork()
  await soon(assert.rejects(ref.whenSynced(), { code: "E0602" }), "the edit is refused")
  const seen = new Watch<boolean>()
  ref.onSnapshot(({ exists }) => seen.take(exists))
  await server.run("restore", ref.url)
  await seen.until(exists => exists, "it is back")
  await soon(ref.whenSynced(), "the edit is on the server")
  assert.equal((await other.collection<Note>("restored").get()).docs[0]?.data().text, "b")
})
