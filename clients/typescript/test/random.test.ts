// Clients that edit at random, with networks that come and go: every listener's changes add up, and all agree at the end.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import type { DocumentReference, Query, QuerySnapshot } from "../src/index.js"
import { randomOf, Server, skip, soon, Watch } from "./server.js"

interface Item {
  room: string
  n: number
}

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

const turn = () => new Promise(done => setImmediate(done))
const brief = (snap: QuerySnapshot<Item>) => snap.docs.map(doc => `${doc.id} ${doc.data().room} ${doc.data().n}`).join("\n")

test("listeners add up and agree, whatever happens to the network", { skip, timeout: 120_000 }, async () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  const queries: ((all: Query<Item>) => Query<Item>)[] = [
    all => all.where("room", "==", "a").orderBy("n", "desc").limit(5),
    all => all.orderBy("n").limitToLast(7),
    all => all.where("n", ">", 20).where("room", "in", ["a", "b"]),
    all => all,
  ]
  const clients = [server.client(), server.client(), server.client()]
  const seen = clients.map(client => queries.map(query => {
    const watch = new Watch<QuerySnapshot<Item>>()
    let list: string[] = []
    query(client.collection<Item>("random")).onSnapshot({ includeMetadataChanges: true }, snap => {
      for (const { type, doc, oldIndex, newIndex } of snap.docChanges()) {
        if (oldIndex >= 0) assert.equal(list.splice(oldIndex, 1)[0], doc.id, `seed ${seed}: ${type}`)
        if (newIndex >= 0) list.splice(newIndex, 0, doc.id)
      }
      assert.deepEqual(list, snap.docs.map(doc => doc.id), `seed ${seed}`)
      list = [...list]
      watch.take(snap)
    })
    return watch
  }))
  const refs: DocumentReference<Item>[][] = clients.map(() => [])
  const deletions: Promise<void>[] = []
  for (let step = 0; step < 240; step += 1) {
    const who = random(clients.length)
    const client = clients[who]!
    const mine = refs[who]!
    const ref = mine[random(Math.max(1, mine.length))]
    const action = random(12)
    if (action < 3 || !ref) {
      mine.push(await client.collection<Item>("random").add({ room: "abc"[random(3)]!, n: random(40) }))
    } else if (action < 8) {
      await ref.change(doc => {
        if (random(2)) doc.n = random(40)
        else doc.room = "abc"[random(3)]!
      })
    } else if (action === 8) {
      mine.splice(mine.indexOf(ref), 1)
      deletions.push(ref.delete())
    } else if (action === 9) {
      client.disableNetwork()
    } else if (action === 10) {
      client.enableNetwork()
    } else {
      // Another's document, when it is seen here.
      const shown = seen[who]?.[3]?.last?.docs ?? []
      const other = shown[random(Math.max(1, shown.length))]
      if (other && client.status === "connected") await other.ref.change(doc => void (doc.n += 1)).catch(() => {})
    }
    for (let turns = random(6); turns > 0; turns -= 1) await turn()
    if (step === 120) {
      await server.kill()
      await server.start()
    }
  }
  for (const client of clients) client.enableNetwork()
  await soon(Promise.all(clients.map(client => client.whenSynced())), `all is on the server (seed ${seed})`)
  await soon(Promise.all(deletions), `all deletions are on the server (seed ${seed})`)
  const judge = server.client().collection<Item>("random")
  for (const [which, query] of queries.entries()) {
    const expected = brief(await query(judge).get())
    for (const [who, watches] of seen.entries()) {
      const watch = watches[which]!
      const agrees = (snap: QuerySnapshot<Item>) => snap === watch.last && !snap.metadata.fromCache && !snap.metadata.hasPendingWrites && brief(snap) === expected
      await watch.until(agrees, `client ${who} and query ${which} agree (seed ${seed})`).catch((error: Error) => {
        throw new Error(`${error.message}\nexpected\n${expected}\nlast\n${watch.last && brief(watch.last)}\n${JSON.stringify(watch.last?.metadata)}`)
      })
    }
  }
})
