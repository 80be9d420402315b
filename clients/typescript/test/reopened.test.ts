// Clients with stores that are closed, or die, and are opened again, with a server that is killed now and then: what is
// said to be on the server is there, and nothing that is in a store is forgotten.

import assert from "node:assert/strict"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after, before, test } from "node:test"
import { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs"
import type { Client, DocumentReference, QuerySnapshot } from "../src/index.js"
import { randomOf, Server, skip, soon, Watch } from "./server.js"

/** Every edit has a key of its own. */
interface Item {
  edits: Record<string, number>
}

interface Edit {
  key: string
  life: Life
  /** The server was said to have it. */
  isKnown: boolean
}

interface Document {
  id: string
  owner: Place
  edits: Edit[]
  /** It is to be deleted by these. */
  deletions: { life: Life; isDone: boolean }[]
}

let server: Server
let lives = 0
const folders: string[] = []
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
  // A repo may still write into them when it is shut down.
  for (const folder of folders) rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
})

const pause = (ms: number) => new Promise(done => setTimeout(done, ms))

/** A store that is slow, and takes nothing any more once whoever has it died. */
class Storage extends NodeFSStorageAdapter {
  isDead = false

  constructor(folder: string, readonly slow: () => number) {
    super(folder)
  }

  override async loadRange(key: string[]): ReturnType<NodeFSStorageAdapter["loadRange"]> {
    await pause(this.slow())
    return await super.loadRange(key)
  }

  override async save(key: string[], data: Uint8Array): Promise<void> {
    if (!this.isDead) await super.save(key, data)
  }

  override async remove(key: string[]): Promise<void> {
    if (!this.isDead) await super.remove(key)
  }

  override async removeRange(key: string[]): Promise<void> {
    if (!this.isDead) await super.removeRange(key)
  }
}

/** A client from when it is opened until it is closed or dies. */
class Life {
  isOver = false
  readonly number = (lives += 1)
  /** It died: what only it knew is lost, or not. */
  isLost = false
  readonly seen = new Watch<QuerySnapshot<Item>>()

  constructor(readonly client: Client, readonly storage: Storage, hold: boolean) {
    this.notes.onSnapshot({ includeMetadataChanges: true, hold }, this.seen.take)
  }

  get notes() {
    return this.client.collection<Item>("reopened")
  }
}

class Place {
  readonly folder = mkdtempSync(join(tmpdir(), "tidelog-ts-store-"))
  life: Life | undefined

  constructor(readonly random: (below: number) => number) {
    folders.push(this.folder)
  }

  open(): Life {
    const storage = new Storage(this.folder, () => this.random(20))
    return (this.life = new Life(server.client({ storage }), storage, this.random(2) === 0))
  }

  async close(): Promise<void> {
    const { life } = this
    if (!life) return
    this.life = undefined
    life.isOver = true
    await soon(life.client.close(), "it is closed")
  }

  /** It ends without another word. */
  async die(): Promise<void> {
    if (!this.life) return
    this.life.isLost = this.life.storage.isDead = true
    await this.close()
  }
}

test("what was said to be on the server is there, whoever is closed, dies or is opened again", { skip, timeout: 120_000 }, async () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  const places = [new Place(random), new Place(random), new Place(random)]
  const documents: Document[] = []
  /** What is under way, and has to end. */
  const waits = new Map<Promise<void>, () => string>()
  const wait = (work: Promise<void>, life: Life, what: string) => {
    waits.set(work, () => `${what} of life ${life.number}, which is ${life.isOver ? "over" : "on"}`)
    work.then(() => waits.delete(work), () => {})
  }
  let count = 0

  /** It was said that edits are on the server: they are, unless the document was deleted. */
  const known = async (document: Document, edits: Edit[]): Promise<void> => {
    for (const edit of edits) edit.isKnown = true
    const answer = await fetch(`${server.url}/v1/collections/reopened/documents/${document.id}`).catch(() => undefined)
    // The server is down, or has deleted it.
    if (!answer || (answer.status === 410 && document.deletions.length > 0)) return
    const text = await answer.text().catch(() => undefined)
    if (text === undefined) return
    assert.equal(answer.status, 200, `seed ${seed}: ${document.id}: ${text}`)
    for (const { key } of edits) assert.ok(text.includes(`"${key}"`), `seed ${seed}: ${key} is on the server: ${text}`)
  }
  const arrived = async (life: Life, document: Document, ref: DocumentReference<Item>): Promise<void> => {
    const edits = document.edits.filter(edit => edit.life === life)
    try {
      await ref.whenSynced()
    } catch (error) {
      const { code } = error as { code: string }
      assert.ok(code === "E0406" || (code === "E0602" && document.deletions.length > 0), `seed ${seed}: ${String(error)}`)
      return
    }
    await known(document, edits)
  }
  const edit = async (life: Life, document: Document): Promise<void> => {
    const ref = life.notes.doc(document.id)
    const key = `k${(count += 1)}`
    try {
      await ref.change(doc => void (doc.edits[key] = count))
    } catch {
      // It is not here, or not any more.
      return
    }
    document.edits.push({ key, life, isKnown: false })
    if (random(2)) await arrived(life, document, ref)
  }
  const remove = async (life: Life, document: Document): Promise<void> => {
    const deletion = { life, isDone: false }
    document.deletions.push(deletion)
    try {
      await life.notes.doc(document.id).delete()
      deletion.isDone = true
    } catch (error) {
      assert.ok(life.isOver, `seed ${seed}: ${String(error)}`)
    }
  }

  for (let step = 0; step < 120; step += 1) {
    const place = places[random(places.length)]!
    const action = random(32)
    if (!place.life) {
      if (action < 20) place.open()
      continue
    }
    const { life } = place
    // Another's is known once it is on the server; what its own may have lost is nobody's.
    const all = documents.filter(({ owner, edits, deletions }) => edits.some(edit => edit.isKnown || (owner === place && !edit.life.isLost)) && (deletions.length === 0 || random(4) === 0))
    const document = all[random(Math.max(1, all.length))]
    if (action < 6 || !document) {
      const key = `k${(count += 1)}`
      const ref = await life.notes.add({ edits: { [key]: count } })
      const made = { id: ref.id, owner: place, edits: [{ key, life, isKnown: false }], deletions: [] }
      documents.push(made)
      if (random(3) === 0) wait(arrived(life, made, ref), life, `the arrival of ${ref.id}`)
    } else if (action < 16) {
      wait(edit(life, document), life, `an edit of ${document.id}`)
    } else if (action < 19) {
      wait(remove(life, document), life, `the deletion of ${document.id}`)
    } else if (action === 19) {
      const ref = life.notes.doc(document.id)
      if (random(2)) ref.onSnapshot(() => {})
      else void ref.handle
    } else if (action === 20) {
      const edits = documents.map(document => ({ document, edits: document.edits.filter(edit => edit.life === life) }))
      const synced = life.client.whenSynced().then(
        async () => void (await Promise.all(edits.filter(({ edits }) => edits.length > 0).map(({ document, edits }) => known(document, edits)))),
        (error: { code: string }) => assert.equal(error.code, "E0406", `seed ${seed}: ${String(error)}`),
      )
      wait(synced, life, "whenSynced")
    } else if (action < 24) {
      await place.close()
      // It is back at once, now and then.
      if (random(2)) place.open()
    } else if (action === 24) {
      await place.die()
    } else if (action < 27) {
      life.client.disableNetwork()
    } else if (action < 30) {
      life.client.enableNetwork()
    } else if (action === 30 && random(2)) {
      await server.kill()
      await server.start()
    }
    if (random(3) === 0) await pause(random(40))
  }
  const last = places.map(place => place.life ?? place.open())
  for (const { client } of last) client.enableNetwork()
  const what = (end: string) => `${end} (seed ${seed})`
  await soon(Promise.all(waits.keys()), what("all that was under way has ended"), 30).catch((error: Error) => {
    throw new Error([error.message, ...[...waits.values()].map(say => say())].join("\n"))
  })
  await soon(Promise.all(last.map(({ client }) => client.whenSynced())), what("all is on the server"), 30)

  const judge = await server.client().collection<Item>("reopened").get()
  const there = new Map(judge.docs.map(doc => [doc.id as string, doc.data().edits]))
  for (const { id, edits, deletions } of documents) {
    const found = there.get(id)
    const asked = `seed ${seed}: ${id}`
    if (deletions.some(({ life, isDone }) => isDone || !life.isLost)) assert.equal(found, undefined, `${asked} is deleted`)
    if (deletions.length > 0) continue
    for (const { key, life, isKnown } of edits) {
      if (isKnown || !life.isLost) assert.ok(found && key in found, `${asked} has ${key}: ${JSON.stringify(found)}`)
    }
  }
  const brief = (snap: QuerySnapshot<Item>) => snap.docs.map(doc => `${doc.id} ${JSON.stringify(Object.entries(doc.data().edits).sort())}`).sort().join("\n")
  for (const [who, { seen }] of last.entries()) {
    const agrees = (snap: QuerySnapshot<Item>) => snap === seen.last && !snap.metadata.fromCache && !snap.metadata.hasPendingWrites && brief(snap) === brief(judge)
    await seen.until(agrees, what(`client ${who} agrees`)).catch((error: Error) => {
      throw new Error(`${error.message}\nexpected\n${brief(judge)}\nlast\n${seen.last && brief(seen.last)}\n${JSON.stringify(seen.last?.metadata)}`)
    })
  }
  // Nothing is left to be brought.
  for (const place of places) {
    await place.close()
    const { client } = place.open()
    client.disableNetwork()
    await soon(client.whenSynced(), what("nothing is left"))
    await place.close()
  }
})
