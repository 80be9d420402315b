// The engine here and the server's find the same, in the same order.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { Counter, ImmutableString, type Query } from "../src/index.js"
import { and, or, where, type Filter, type Operator } from "../src/index.js"
import { randomOf, Server, skip, soon } from "./server.js"

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

test("queries are answered alike with and without the server", { skip, timeout: 120_000 }, async () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  const pick = <V>(values: readonly V[]): V => values[random(values.length)]!
  const client = server.client()
  const all = client.collection<Record<string, unknown>>("agreement")
  const values = (): unknown => pick([
    null, true, false, 0, 1, 2, -1, 1.5, 1e300, "", "a", "b", "ab", "é", "😀", "\uffff", new Date(5), new Date(-5), new Counter(1),
    new ImmutableString("a"), new Uint8Array([1]), [1], ["a", 1], [], { x: 1 }, {},
  ])
  for (let count = 0; count < 120; count += 1) {
    const data: Record<string, unknown> = {}
    for (const field of ["a", "b", "c"]) if (random(5) > 0) data[field] = values()
    await all.add(data)
  }
  await soon(client.whenSynced(), "all is on the server", 60)
  // Fresh from the server, so that both have the same to look at.
  const other = server.client()
  const theirs = other.collection<Record<string, unknown>>("agreement")
  assert.equal((await theirs.get()).size, 120)
  const scalar = (): unknown => pick([null, true, 0, 1, 1.5, "a", "b", "é", new Date(5), [1], { x: 1 }])
  const condition = (): Filter => {
    const field = pick(["a", "b", "c", "c.x"])
    const op = pick<Operator>(["==", "!=", "<", "<=", ">", ">=", "in", "not-in", "array-contains", "array-contains-any", "exists"])
    if (op === "exists") return where(field, op, random(2) === 0)
    return where(field, op, op === "in" || op === "not-in" || op === "array-contains-any" ? [scalar(), scalar()] : scalar())
  }
  const filter = (depth: number): Filter => {
    const kind = random(depth > 1 ? 1 : 4)
    if (kind < 2) return condition()
    const parts = [filter(depth + 1), filter(depth + 1)]
    return kind === 2 ? and(...parts) : or(...parts)
  }
  let found = 0
  let compared = 0
  for (let round = 0; round < 250; round += 1) {
    let query: Query<Record<string, unknown>> = theirs
    if (random(4) > 0) query = query.where(filter(0))
    for (const field of ["a", "b"].slice(0, random(3))) query = query.orderBy(field, pick(["asc", "desc"]))
    if (random(2)) query = random(2) ? query.limit(1 + random(8)) : query.limitToLast(1 + random(8))
    if (query.spec.order.length > 0) {
      if (random(3) === 0) query = random(2) ? query.startAt(scalar()) : query.startAfter(scalar())
      if (random(3) === 0) query = random(2) ? query.endAt(scalar()) : query.endBefore(scalar())
    }
    let told
    try {
      told = await query.get()
    } catch (error) {
      // Ranges of two types: refused by both, here first.
      assert.equal((error as { code?: string }).code, "E0623", `seed ${seed}: ${String(error)}`)
      continue
    }
    assert.equal(told.metadata.fromCache, false)
    other.disableNetwork()
    const held = await query.get()
    other.enableNetwork()
    assert.equal(held.metadata.fromCache, true)
    const ids = [told, held].map(snapshot => snapshot.docs.map(doc => doc.id).join())
    assert.equal(ids[1], ids[0], `seed ${seed}, round ${round}: ${JSON.stringify(query.spec)}`)
    found += told.size
    compared += 1
  }
  assert.ok(found > 500 && compared > 100, `${found} documents in ${compared} answers (seed ${seed})`)
})
