// What rules and tokens do to a client, on a real server.

import assert from "node:assert/strict"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after, test } from "node:test"
import type { Rejected } from "../src/index.js"
import { Server, skip, Watch } from "./server.js"

interface Note {
  text: string
  owner: string
  room: string
}

const RULES = `
match /notes/{id} {
  allow read: if resource.data.room == 'hall' || resource.data.owner == request.auth.uid;
  allow create: if request.resource.data.owner == request.auth.uid;
  allow update: if resource.data.owner == request.auth.uid;
  // ben: allow update: if request.auth.uid == 'ben';
}
`

const folder = mkdtempSync(join(tmpdir(), "tidelog-rules-"))
after(() => rmSync(folder, { recursive: true, force: true }))

test("what is not allowed is told and taken back, and arrives once it is allowed and made again", { skip }, async () => {
  const rules = join(folder, "rules.tidelog")
  writeFileSync(rules, RULES)
  const server = await Server.start("--auth", "--rules", rules)
  try {
    const token = (user: string) => server.run("token", "new", "--user", user, "-q")
    const [anna, benno] = [server.client({ token: await token("ann") }), server.client({ token: await token("ben") })]
    const seen = new Watch<string[]>()
    const stop = benno.collection<Note>("notes").onSnapshot(snapshot => seen.take(snapshot.docs.map(doc => doc.data().text)))

    const note = await anna.collection<Note>("notes").add({ text: "tides", owner: "ann", room: "hall" })
    const hidden = await anna.collection<Note>("notes").add({ text: "secret", owner: "ann", room: "attic" })
    await Promise.all([note.whenSynced(), hidden.whenSynced()])
    await seen.until(texts => texts.join() === "tides", "what may be read is in the result")

    // An edit that is denied: shown at once, told, taken back, and nowhere else.
    const rejections = new Watch<Rejected>()
    benno.onRejected(rejections.take)
    const his = benno.collection<Note>("notes").doc(note.id)
    await his.load()
    await his.change(doc => void (doc.text = "tides, said ben"))
    await seen.until(texts => texts.join() === "tides, said ben", "his own edit shows")
    await assert.rejects(his.whenSynced(), { code: "E0203" })
    const rejected = await rejections.until(() => true, "word of the denial")
    assert.deepEqual([rejected.documentId, rejected.collection, rejected.kind], [note.id, "notes", "change"])
    assert.match(rejected.reason.message, /rules/)
    assert.deepEqual(benno.rejected, [rejected])
    await seen.until(texts => texts.join() === "tides", "it is taken back")
    assert.equal((await note.get()).data()?.text, "tides")

    // Not allowed yet: back on the list, under another name.
    await benno.resubmit(rejected.id)
    await seen.until(texts => texts.join() === "tides, said ben", "it is made again")
    const again = await rejections.until(({ id }) => id !== rejected.id, "word of the second denial")
    assert.deepEqual(benno.rejected, [again])
    await assert.rejects(benno.resubmit(rejected.id), { code: "E0601" })

    // Other rules, and it arrives.
    writeFileSync(rules, RULES.replace("// ben: ", ""))
    await new Promise(done => setTimeout(done, 1_500))
    await benno.resubmit(again.id)
    const told = new Watch<string | undefined>()
    const end = note.onSnapshot(snapshot => told.take(snapshot.data()?.text))
    await told.until(text => text === "tides, said ben", "what was denied has arrived")
    await his.whenSynced()
    assert.deepEqual(benno.rejected, [])

    // Revoked: the client says so.
    const statuses = new Watch<string>()
    benno.onStatus(statuses.take)
    await server.run("token", "revoke", "--user", "ben")
    await statuses.until(status => status === "denied", "the status of a revoked token")
    assert.match(String(benno.lastError?.message), /token/)
    assert.ok(!seen.all.some(texts => texts.includes("secret")))
    stop()
    end()
  } finally {
    await server.close()
  }
})

test("another token counts on the connection that stands", { skip }, async () => {
  const rules = join(folder, "rooms.tidelog")
  writeFileSync(rules, "match /notes/{id} { allow create: if true; allow read: if resource.data.room in request.auth.token.rooms; }")
  const server = await Server.start("--auth", "--rules", rules)
  try {
    const token = (user: string, ...rooms: string[]) =>
      server.run("token", "new", "--user", user, "--claim", `rooms=${JSON.stringify(rooms)}`, "-q")
    const anna = server.client({ token: await token("ann", "hall", "attic") })
    for (const room of ["hall", "attic"]) {
      const note = await anna.collection<Note>("notes").add({ text: room, owner: "ann", room })
      await note.whenSynced()
    }
    let current = await token("ben", "hall")
    const benno = server.client({ token: () => Promise.resolve(current) })
    const statuses = new Watch<string>()
    benno.onStatus(statuses.take)
    const seen = new Watch<string[]>()
    const stop = benno.collection<Note>("notes").onSnapshot(shot => seen.take(shot.docs.map(doc => doc.data().text)))
    await seen.until(texts => texts.join() === "hall", "what the first token lets him read")
    await statuses.until(status => status === "connected", "the connection")
    const before = statuses.all.length

    current = await token("ben", "attic")
    await benno.authenticate()
    const attic = await benno.repo.find((await anna.collection<Note>("notes").where("room", "==", "attic").get()).docs[0]!.id as never)
    assert.equal((attic.doc() as Note).text, "attic")
    assert.equal(statuses.all.length, before, "over the same connection")

    // Somebody else's is not taken.
    current = await token("ann", "hall")
    await benno.authenticate()
    await statuses.until(status => status === "denied", "the end of the connection")
    stop()
  } finally {
    await server.close()
  }
})

test("who has too many connections waits as long as he is told, and is let in once there is room", { skip }, async () => {
  const quotas = join(folder, "quotas.json")
  writeFileSync(quotas, JSON.stringify({ user: { connections: 1 } }))
  const server = await Server.start("--auth", "--quotas", quotas)
  try {
    const token = await server.run("token", "new", "--user", "ann", "-q")
    const first = server.client({ token })
    const note = await first.collection<Note>("notes").add({ text: "tides", owner: "ann", room: "hall" })
    await note.whenSynced()

    const second = server.client({ token })
    const statuses = new Watch<string>()
    second.onStatus(statuses.take)
    await statuses.until(status => status === "offline", "the second is turned away")
    assert.match(String(second.lastError?.message), /too many connections from this user; retry after \d+ ms/)
    const began = performance.now()
    await first.close()
    await statuses.until(status => status === "connected", "there is room")
    assert.ok(performance.now() - began > 2_000, "it waited as it was told")
    assert.ok(!statuses.all.includes("denied"))
  } finally {
    await server.close()
  }
})
