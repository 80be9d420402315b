// Changes are read and written as Automerge writes them.

import assert from "node:assert/strict"
import { test } from "node:test"
import * as A from "@automerge/automerge"
import { readChange, writeChange } from "../src/written.js"
import { randomOf } from "./server.js"

type Any = Record<string, any>

/** A document that two authors edited at random, with every kind of value and operation. */
function randomDocument(random: (below: number) => number): A.Doc<Any> {
  let docs = [A.from<Any>({ text: "tide", list: [1], map: {}, count: new A.Counter(1) })]
  docs.push(A.clone(docs[0]!))
  const values = [
    () => random(2 ** 31), () => -random(1000), () => 2 ** 40 + random(9), () => 1.5, () => NaN, () => true, () => null,
    () => "é😀".repeat(random(3)), () => new Date(random(1e9) * 1000), () => new Uint8Array(random(300)),
    () => new A.Counter(random(9) - 4), () => new A.ImmutableString("x"), () => 10n ** 17n, () => ({ a: { b: [1, "c"] } }), () => [],
  ]
  const edits: ((doc: Any) => void)[] = [
    doc => void (doc["map"][`k${random(5)}`] = values[random(values.length)]!()),
    doc => void doc["list"].splice(random(doc["list"].length + 1), random(2), values[random(values.length)]!()),
    doc => A.splice(doc, ["text"], random(doc["text"].length + 1), 0, "ab😀".slice(0, 1 + random(2))),
    doc => doc["text"].length > 2 && A.splice(doc, ["text"], random(doc["text"].length - 1), 1),
    doc => doc["text"].length > 2 && A.mark(doc, ["text"], { start: 0, end: 1 + random(doc["text"].length - 1), expand: "both" }, "bold", random(9)),
    doc => doc["text"].length > 2 && A.unmark(doc, ["text"], { start: 0, end: 1, expand: "none" }, "bold"),
    doc => doc["count"].increment(random(5) - 2),
    doc => void delete doc["map"][`k${random(5)}`],
  ]
  for (let step = 0; step < 40; step += 1) {
    const who = random(2)
    docs[who] = A.change(docs[who]!, { ...(random(2) ? { message: "why" } : {}), time: random(2) ? -5 : 1e9 }, doc => {
      for (let count = random(4); count >= 0; count -= 1) edits[random(edits.length)]!(doc)
    })
    if (random(8) === 0) docs[who] = A.emptyChange(docs[who]!)
    if (random(4) === 0) docs[who] = A.merge(docs[who]!, docs[1 - who]!)
  }
  return A.merge(docs[0]!, docs[1]!)
}

test("every change is read, and written as the same bytes", () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  for (let round = 0; round < 30; round += 1) {
    const doc = randomDocument(random)
    const hashes = new Set(A.getChangesMetaSince(doc, []).map(({ hash }) => hash))
    for (const bytes of A.getAllChanges(doc)) {
      const change = readChange(bytes)
      const again = writeChange(change)
      assert.deepEqual(again.bytes, new Uint8Array(bytes), `seed ${seed}`)
      assert.ok(hashes.has(again.hash), `seed ${seed}`)
      // One that is cut is no change.
      assert.throws(() => readChange(bytes.slice(0, -1 - random(bytes.length - 12))), `seed ${seed}`)
    }
  }
})
