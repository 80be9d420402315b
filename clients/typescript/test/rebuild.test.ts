// Documents without changes that were refused.

import assert from "node:assert/strict"
import { test } from "node:test"
import * as A from "@automerge/automerge"
import { makeOnTop, rebuild } from "../src/rebuild.js"
import { readChange, writeChange } from "../src/written.js"
import { randomOf } from "./server.js"

type Any = Record<string, any>

const text = (doc: Any, at: number, removed: number, added: string) => A.splice(doc as A.Doc<unknown>, ["text"], at, removed, added)
const headOf = (doc: A.Doc<Any>) => A.getHeads(doc)[0]!
const base = A.from<Any>({ text: "tide", list: ["a", "b"], map: { x: 1 }, count: new A.Counter(0) })
const begin = () => A.clone(base)

/** Makes one refused edit and one on top of it, and takes the first back. */
function without(refuse: (doc: Any) => void, onTop: (doc: Any) => void): { value: Any; leftOut: number } {
  const refused = A.change(begin(), refuse)
  const doc = A.change(refused, onTop)
  const rebuilt = rebuild(doc, new Set([headOf(refused)]))!
  return { value: A.toJS(rebuilt.doc), leftOut: rebuilt.taken[0]!.leftOut }
}

test("what was made on top means what it meant, without what was refused", () => {
  const cases: [string, (doc: Any) => void, (doc: Any) => void, Any, number?][] = [
    ["text behind a refused insertion", doc => text(doc, 2, 0, "XX"), doc => text(doc, 5, 0, "!"), { text: "tid!e" }],
    ["text inside a refused insertion", doc => text(doc, 2, 0, "XX"), doc => text(doc, 3, 0, "!"), { text: "ti!de" }],
    ["text where a refused deletion was", doc => text(doc, 1, 2, ""), doc => text(doc, 1, 0, "!"), { text: "t!ide" }],
    ["a deletion across a refused insertion", doc => text(doc, 2, 0, "XX"), doc => text(doc, 1, 4, ""), { text: "te" }, 2],
    ["an element of a list", doc => doc["list"].unshift("X"), doc => (doc["list"][1] = "A"), { list: ["A", "b"] }],
    ["a field of a refused map", doc => (doc["new"] = { y: 1 }), doc => (doc["new"].z = 2), {}, 1],
    ["a field that was overwritten", doc => (doc["map"].x = 2), doc => (doc["map"].x = 3), { map: { x: 3 } }],
    ["a field that was deleted", doc => delete doc["map"].x, doc => (doc["map"].x = 3), { map: { x: 3 } }],
    ["the deletion of a refused value", doc => (doc["map"].x = 2), doc => delete doc["map"].x, { map: {} }],
    ["the deletion of a refused field", doc => (doc["map"].y = 2), doc => delete doc["map"].y, {}, 1],
    ["a counter", doc => doc["count"].increment(5), doc => doc["count"].increment(2), { count: new A.Counter(2) }],
    ["a refused counter", doc => (doc["count"] = new A.Counter(5)), doc => doc["count"].increment(2), {}, 1],
    ["bytes", doc => (doc["map"].x = 2), doc => (doc["map"].b = new Uint8Array([1, 2])), { map: { x: 1, b: new Uint8Array([1, 2]) } }],
    ["a number beyond JavaScript's", doc => (doc["map"].x = 2), doc => (doc["map"].n = 2n ** 60n), { map: { x: 1, n: 2n ** 60n } }],
  ]
  for (const [name, refuse, onTop, expected, lost = 0] of cases) {
    const { value, leftOut } = without(refuse, onTop)
    assert.deepEqual(value, { ...A.toJS(begin()), ...expected }, name)
    assert.equal(leftOut, lost, name)
  }
})

test("who wrote where a refused deletion was overwrites what that had deleted", () => {
  const refused = A.change(begin(), doc => delete doc["map"].x)
  const rebuilt = rebuild(A.change(refused, doc => (doc["map"].x = 3)), new Set([headOf(refused)]))!
  assert.equal(A.getConflicts((rebuilt.doc as A.Doc<Any>)["map"], "x"), undefined)
})

test("a mark stays, also when all that it spanned is gone", () => {
  const refused = A.change(begin(), doc => text(doc, 2, 0, "XX"))
  const mark = (start: number, end: number) => {
    const doc = A.change(A.clone(refused), doc => A.mark(doc as A.Doc<unknown>, ["text"], { start, end, expand: "none" }, "bold", true))
    return A.marks(rebuild(doc, new Set([headOf(refused)]))!.doc, ["text"])
  }
  assert.deepEqual(mark(1, 5), [{ name: "bold", value: true, start: 1, end: 3 }])
  assert.deepEqual(mark(2, 4), [])
})

test("what is made anew is the same wherever it is made, and counts as when it was made first", () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  for (let round = 0; round < 40; round += 1) {
    const edit = (doc: A.Doc<Any>, tag: string) => A.change(doc, draft => {
      if (random(2)) text(draft, random(draft["text"].length + 1), random(2), tag)
      if (random(2)) draft["list"].splice(random(draft["list"].length + 1), 0, tag)
      if (random(2)) draft["map"][`k${random(3)}`] = tag
      if (random(4) === 0) delete draft["map"][`k${random(3)}`]
      draft[tag] = tag
    })
    // Two pages of one author, that have merged now and then.
    const docs = [A.clone(base), A.clone(base)]
    const [refused, tags] = [new Set<string>(), new Map<string, string>()]
    for (let step = 0; step < 10; step += 1) {
      const who = random(2)
      docs[who] = edit(docs[who]!, `<${step}>`)
      const [head] = A.getHeads(docs[who]!)
      tags.set(head!, `<${step}>`)
      // What stands on a refused one nobody has looked at.
      const stands = [...refused].some(hash => A.hasHeads(docs[who]!, [hash]))
      if (!stands && random(4) === 0) refused.add(head!)
      if (random(4) === 0) docs[who] = A.merge(docs[who]!, docs[1 - who]!)
    }
    if (refused.size === 0) continue
    const mine = A.merge(A.clone(docs[0]!), docs[1]!)
    const alone = rebuild(mine, refused)!
    assert.deepEqual(new Set(alone.taken.map(({ hash }) => hash)), refused, `seed ${seed}`)
    const now = A.toJS(alone.doc) as Any
    for (const [hash, tag] of tags) assert.equal(now[tag], refused.has(hash) ? undefined : tag, `seed ${seed}`)
    assert.equal(rebuild(alone.doc, refused), undefined)
    // Each names what it stands on as Automerge would: nothing below something else.
    for (const { deps } of A.getChangesMetaSince(alone.doc, alone.kept)) {
      assert.deepEqual(A.getHeads(A.clone(A.view(alone.doc, deps))).sort(), [...deps].sort(), `seed ${seed}`)
    }
    // Elsewhere there are others' changes, and later ones of the same author.
    const more = A.merge(edit(A.clone(mine), "more"), edit(A.clone(base), "theirs"))
    const elsewhere = rebuild(more, refused)!
    const both = A.merge(A.clone(elsewhere.doc), alone.doc)
    assert.deepEqual(A.getHeads(both).sort(), A.getHeads(elsewhere.doc).sort(), `seed ${seed}`)
    assert.deepEqual(A.getHeads(A.load(A.save(both))).sort(), A.getHeads(both).sort())
  }
})

test("what cannot be made anew is kept with what was refused", () => {
  const refused = A.change(begin(), doc => (doc["map"].x = 2))
  // A change in a form of later days: with bytes behind its end.
  const honest = A.getChangesSince(A.change(refused, doc => (doc["map"].y = 3)), A.getHeads(refused))[0]!
  const { bytes } = writeChange(readChange(honest), Uint8Array.of(1, 2, 3))
  const [doc] = A.applyChanges(A.clone(refused), [bytes])
  assert.throws(() => readChange(bytes))
  const rebuilt = rebuild(doc, new Set([headOf(refused)]))!
  assert.deepEqual(A.toJS(rebuilt.doc), A.toJS(begin()))
  assert.deepEqual(rebuilt.taken.map(({ changes }) => changes[0]), [A.getChangesSince(doc, A.getHeads(begin()))[0], bytes])
  assert.match(rebuilt.taken[1]!.fault!, /cannot be made/)
})

test("an edit that is made again is one of now", () => {
  const refused = A.change(begin(), doc => {
    doc["map"].x = 2
    text(doc, 4, 0, "s")
    doc["new"] = { y: [1] }
  })
  const { changes } = rebuild(refused, new Set([headOf(refused)]))!.taken[0]!
  const now = A.change(begin(), doc => {
    doc["map"].x = 3
    text(doc, 0, 0, "the ")
  })
  const again = makeOnTop(now, changes)
  assert.deepEqual(A.toJS(again), { ...A.toJS(now), text: "the tides", map: { x: 2 }, new: { y: [1] } })
  assert.notEqual(headOf(again), headOf(refused))
  assert.deepEqual(A.getChangesMetaSince(again, A.getHeads(now))[0]!.deps, A.getHeads(now))
})
