// A network that goes and comes, and a server that is killed.

import assert from "node:assert/strict"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after, before, test } from "node:test"
import { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs"
import type { DocumentReference, QuerySnapshot } from "../src/index.js"
import { Server, skip, soon, Watch } from "./server.js"

interface Note {
  text: string
  n: number
}

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

const texts = (snap: QuerySnapshot<Note>) => snap.docs.map(doc => doc.data().text).join()

test("edits made without a network show at once and converge when it is back", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const [mine, theirs] = [one.collection<Note>("apart"), other.collection<Note>("apart")]
  const first = await mine.add({ text: "first", n: 1 })
  await soon(one.whenSynced(), "the first is on the server")
  const [seen, read] = [new Watch<QuerySnapshot<Note>>(), new Watch<QuerySnapshot<Note>>()]
  mine.orderBy("n").onSnapshot({ includeMetadataChanges: true }, seen.take)
  theirs.orderBy("n").onSnapshot({ includeMetadataChanges: true, hold: true }, read.take)
  await seen.until(snap => !snap.metadata.fromCache, "an answer")
  await read.until(snap => texts(snap) === "first" && !snap.metadata.fromCache, "an answer there")
  await other.collection<Note>("apart").doc(first.id).load()

  const offline = new Watch<string>()
  one.onStatus(offline.take)
  one.disableNetwork()
  assert.equal(one.status, "offline")
  await seen.until(snap => snap.metadata.fromCache && texts(snap) === "first", "the cache answers")
  await mine.add({ text: "alone", n: 2 })
  await first.change(doc => void (doc.text = "first, edited here"))
  const alone = await seen.until(snap => texts(snap) === "first, edited here,alone", "the edits show")
  assert.deepEqual([alone.metadata.fromCache, alone.metadata.hasPendingWrites], [true, true])
  const cached = await mine.where("n", ">", 1).get()
  assert.deepEqual([cached.metadata.fromCache, texts(cached), await mine.count()], [true, "alone", 2])
  await theirs.doc(first.id).change(doc => void (doc.n = 3))
  await theirs.add({ text: "there", n: 0 })
  await soon(other.whenSynced(), "the other edits are on the server")
  assert.equal(read.last && texts(read.last), "there,first")

  one.enableNetwork()
  for (const watch of [seen, read]) {
    await watch.until(snap => texts(snap) === "there,alone,first, edited here" && !snap.metadata.fromCache && !snap.metadata.hasPendingWrites, "both are the same")
  }
  assert.deepEqual(offline.all.slice(0, 3), ["offline", "connecting", "connected"])
})

test("a listener goes on where it was when the server was killed and started", { skip }, async () => {
  const [writer, reader] = [server.client(), server.client()]
  const mine = writer.collection<Note>("killed")
  for (const n of [1, 2, 3]) await mine.add({ text: `n${n}`, n })
  await soon(writer.whenSynced(), "all is on the server")
  const added: string[] = []
  const seen = new Watch<QuerySnapshot<Note>>()
  reader.collection<Note>("killed").orderBy("n").onSnapshot({ includeMetadataChanges: true }, snap => {
    for (const change of snap.docChanges()) added.push(`${change.type} ${change.doc.data().text}`)
    seen.take(snap)
  })
  await seen.until(snap => !snap.metadata.fromCache && snap.size === 3, "the first result")
  await server.kill()
  await seen.until(snap => snap.metadata.fromCache && snap.size === 3, "the cache answers")
  const late = await mine.add({ text: "n4", n: 4 })
  await server.start()
  await soon(late.whenSynced(), "it is on the server")
  await seen.until(snap => !snap.metadata.fromCache && snap.size === 4, "the result goes on")
  assert.deepEqual(added, ["added n1", "added n2", "added n3", "added n4"], "nothing is told twice")
})

test("what is in the store answers after a start without a network, and edits of before reach the server", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tidelog-ts-store-"))
  try {
    const storage = () => new NodeFSStorageAdapter(folder)
    const first = server.client({ storage: storage() })
    const notes = first.collection<Note>("kept")
    await notes.add({ text: "a", n: 1 })
    await soon(first.whenSynced(), "it is on the server")
    const foreign = server.client()
    await foreign.collection<Note>("kept").add({ text: "b", n: 2 })
    await soon(foreign.whenSynced(), "the other is on the server")
    assert.equal(texts(await notes.orderBy("n").get()), "a,b")
    first.disableNetwork()
    const unsent = await notes.add({ text: "c", n: 3 })
    await first.repo.flush()
    await first.close()

    const away = server.client({ storage: storage() })
    away.disableNetwork()
    const seen = new Watch<QuerySnapshot<Note>>()
    away.collection<Note>("kept").orderBy("n", "desc").limit(2).onSnapshot({ includeMetadataChanges: true }, seen.take)
    const cached = await seen.until(snap => texts(snap) === "c,b", "the store answers")
    assert.deepEqual([cached.metadata.fromCache, cached.docs.map(doc => doc.metadata.hasPendingWrites)], [true, [true, false]])
    away.enableNetwork()
    await seen.until(snap => texts(snap) === "c,b" && !snap.metadata.hasPendingWrites && !snap.metadata.fromCache, "it is sent")
    const told = await foreign.collection<Note>("kept").orderBy("n").get()
    assert.equal(texts(told), "a,b,c")
    assert.equal(told.docs[2]?.id, unsent.id)
    await away.close()
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test("a document deleted without a network is hidden at once and deleted when it is back", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const mine = one.collection<Note>("gone")
  const ref = await mine.add({ text: "a", n: 1 })
  await soon(one.whenSynced(), "it is on the server")
  const seen = new Watch<QuerySnapshot<Note>>()
  mine.onSnapshot(seen.take)
  await seen.until(snap => snap.size === 1, "the document")
  one.disableNetwork()
  const deleted = ref.delete()
  await seen.until(snap => snap.size === 0, "it is hidden")
  assert.equal((await other.collection<Note>("gone").get()).size, 1)
  one.enableNetwork()
  await soon(deleted, "the server has deleted it")
  assert.equal((await other.collection<Note>("gone").get()).size, 0)
})

test("a document deleted before the store was read is deleted once, after it was brought", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tidelog-ts-store-"))
  try {
    const storage = new NodeFSStorageAdapter(folder)
    let open = () => {}
    const opened = new Promise<void>(done => (open = done))
    const read = storage.loadRange.bind(storage)
    storage.loadRange = async key => {
      if (key[0] === "tidelog") await opened
      return await read(key)
    }
    const client = server.client({ storage })
    client.disableNetwork()
    const ref = await client.collection<Note>("early").add({ text: "a", n: 1 })
    const deleted = ref.delete()
    open()
    await client.holdings.ready
    client.enableNetwork()
    await soon(Promise.all([deleted, client.whenSynced()]), "it is deleted")
    await wasDeleted(ref)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test("what was made and deleted before a restart reaches the server in that order", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tidelog-ts-store-"))
  try {
    const first = server.client({ storage: new NodeFSStorageAdapter(folder) })
    first.disableNetwork()
    const ref = await first.collection<Note>("before").add({ text: "a", n: 1 })
    const ended = assert.rejects(ref.delete(), { code: "E0406" })
    await first.repo.flush()
    await first.close()
    await ended

    const second = server.client({ storage: new NodeFSStorageAdapter(folder) })
    await soon(second.whenSynced(), "it is deleted")
    await wasDeleted(ref)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test("a document whose first edit was lost with the process is not shown, nor waited for", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tidelog-ts-store-"))
  try {
    const first = server.client({ storage: new NodeFSStorageAdapter(folder) })
    first.disableNetwork()
    const notes = first.collection<Note>("lost")
    const [lost, kept] = [await notes.add({ text: "lost", n: 1 }), await notes.add({ text: "kept", n: 2 })]
    await first.repo.flush()
    await first.close()
    const storage = new NodeFSStorageAdapter(folder)
    await storage.removeRange([lost.id])

    const second = server.client({ storage })
    await soon(second.whenSynced(), "the rest is on the server")
    assert.equal(texts(await second.collection<Note>("lost").get()), "kept")
    assert.equal(second.holdings.find(lost.id), undefined)
    assert.notEqual(second.holdings.find(kept.id), undefined)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

/** The server had a document, and has it no more. */
async function wasDeleted(ref: DocumentReference<Note>): Promise<void> {
  const answer = await fetch(`${server.url}/v1/collections/${ref.collection}/documents/${ref.url}`)
  assert.equal(answer.status, 410, await answer.text())
}
