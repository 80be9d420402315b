// The change feed, and who is here.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { Query, type FeedEvent, type TidelogError } from "../src/index.js"
import { EVERYTHING } from "../src/query-spec.js"
import { Server, skip, soon, Watch } from "./server.js"

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

const brief = (event: FeedEvent) => `${event.kind} ${"id" in event ? event.id : ""} ${"position" in event ? event.position : ""}`

test("the feed goes on over a cut connection and a killed server, without gap or repetition", { skip, timeout: 60_000 }, async () => {
  const [writer, reader] = [server.client(), server.client()]
  const mine = writer.collection<{ n: number }>("fed")
  const seen = new Watch<FeedEvent>()
  const ending = new AbortController()
  const reading = (async () => {
    for await (const event of reader.collection("fed").changes({ signal: ending.signal })) seen.take(event)
  })()
  const ref = await mine.add({ n: 0 })
  await soon(writer.whenSynced(), "it is on the server")
  await seen.until(event => event.kind === "changed", "the first change")
  const write = async (n: number) => {
    await ref.change(doc => void (doc.n = n))
    await soon(writer.whenSynced(), "an edit is on the server")
  }
  for (const n of [1, 2]) await write(n)
  reader.disableNetwork()
  for (const n of [3, 4]) await write(n)
  reader.enableNetwork()
  await write(5)
  await server.kill()
  const edit = write(6)
  await server.start()
  await edit
  await seen.until(() => seen.all.filter(event => event.kind === "changed").length === 7, "all changes")
  ending.abort()
  await soon(reading, "the end of the loop")
  assert.deepEqual(seen.all.map(event => event.kind), ["created", ...Array(7).fill("changed")])
  assert.equal(new Set(seen.all.map(brief)).size, 8)

  const third = seen.all[3]!
  const again: FeedEvent[] = []
  for await (const event of server.client().collection("fed").changes({ from: third.cursor })) {
    again.push(event)
    if (again.length === 4) break
  }
  assert.deepEqual(again, seen.all.slice(4))
  const all: FeedEvent[] = []
  for await (const event of server.client().changes({ from: "beginning" })) {
    all.push(event)
    if (all.length === 2) break
  }
  assert.deepEqual(all.map(event => event.kind), ["created", "changed"])
})

test("a cursor that is none is refused with a code and what to do", { skip }, async () => {
  const feed = server.client().changes({ from: "nonsense" })
  await assert.rejects(feed.next(), (error: { code?: string; fix?: string; status?: number }) => {
    assert.deepEqual([error.code, error.status], ["E0311", 400])
    assert.match(error.fix ?? "", /beginning/)
    return true
  })
})

test("what the server refuses ends a listener with its code", { skip }, async () => {
  const client = server.client()
  // A part that only a newer client knows.
  const spec = { ...EVERYTHING, order: [{ field: "a", direction: "sideways" as "asc" }] }
  const newer = new Query(client, "refused", spec)
  const failed = new Watch<TidelogError>()
  newer.onSnapshot(() => assert.fail("nothing is told"), failed.take)
  const error = await failed.until(() => true, "an error")
  assert.deepEqual([error.code, error.status, error.fix.length > 0], ["E0623", 400, true])
  await assert.rejects(newer.get(), { code: "E0623" })
})

test("two clients see each other beside a document", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const ref = await one.collection<{ text: string }>("presence").add({ text: "a" })
  await soon(ref.whenSynced(), "it is on the server")
  const theirs = other.collection<{ text: string }>("presence").doc(ref.id)
  await theirs.load()
  const mine = ref.presence<{ name: string; cursor: number | null }>({ name: "Ada", cursor: null })
  const yours = theirs.presence<{ name: string; cursor: number | null }>({ name: "Ben", cursor: 3 })
  const seen = new Watch<string>()
  const tell = (who: string, all: typeof mine.others) => {
    for (const { value } of Object.values(all)) seen.take(`${who} sees ${value.name} at ${String(value.cursor)}`)
    if (Object.keys(all).length === 0) seen.take(`${who} sees nobody`)
  }
  mine.onChange(() => tell("Ada", mine.others))
  yours.onChange(() => tell("Ben", yours.others))
  await seen.until(text => text === "Ada sees Ben at 3", "Ben is here")
  mine.set("cursor", 17)
  await seen.until(text => text === "Ben sees Ada at 17", "Ada moves")
  yours.stop()
  await seen.until(text => text === "Ada sees nobody", "Ben leaves")
  mine.stop()
})
