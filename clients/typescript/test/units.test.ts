// What needs no server: steps between results, the order of values, what is refused.

import assert from "node:assert/strict"
import { test } from "node:test"
import { Counter, ImmutableString, TidelogError, tidelog, where } from "../src/index.js"
import { stepsBetween, type Ranked } from "../src/changes.js"
import { expiresIn } from "../src/connection.js"
import { stepsOf } from "../src/path.js"
import { check, EVERYTHING, specToJson } from "../src/query-spec.js"
import { compareValues, fromJson, toJson, UnknownValue, valueAt } from "../src/values.js"
import { randomOf } from "./server.js"

test("steps applied to the result before make the result now", () => {
  const seed = Number(process.env["TIDELOG_SEED"] ?? Date.now() % 1e9)
  const random = randomOf(seed)
  interface Item extends Ranked<[number, number]> {}
  const compare = (a: [number, number], b: [number, number]) => a[0] - b[0] || a[1] - b[1]
  const result = () => {
    const all: Item[] = []
    for (let id = 0; id < 12; id += 1) {
      if (random(2)) all.push({ id: String(id), heads: String(random(3)), isPending: random(2) === 0, place: [random(4), id] })
    }
    return all.sort((a, b) => compare(a.place, b.place))
  }
  const brief = (items: readonly Item[]) => items.map(({ id, heads, place }) => `${id}/${heads}/${place}`)
  for (let round = 0; round < 2000; round += 1) {
    const [before, now] = [result(), result()]
    for (const withMetadata of [false, true]) {
      const list = [...before]
      let isRemoving = true
      for (const { type, doc, oldIndex, newIndex } of stepsBetween<[number, number], Item>(before, now, compare, withMetadata)) {
        assert.ok(type !== "removed" || isRemoving, `removals come first (seed ${seed})`)
        isRemoving &&= type === "removed"
        if (oldIndex >= 0) assert.equal(list.splice(oldIndex, 1)[0]?.id, doc.id, `seed ${seed}, round ${round}`)
        if (newIndex >= 0) list.splice(newIndex, 0, doc)
        assert.deepEqual([oldIndex < 0, newIndex < 0], [type === "added", type === "removed"])
      }
      assert.deepEqual(brief(list), brief(now), `seed ${seed}, round ${round}`)
      if (withMetadata) assert.deepEqual(list.map(each => each.isPending), now.map(each => each.isPending), `seed ${seed}`)
    }
  }
})

test("values are in the order of docs/queries.md", () => {
  const ascending = [
    null, false, true, NaN, -Infinity, -1e300, -1.5, -1, 0, 5e-324, 0.5, new Counter(1), 1.000_000_000_1,
    9_007_199_254_740_992, 9_007_199_254_740_993n, Infinity, new Date(-5), new Date(5), "", "\0", "\0a", "a", "a\0",
    new ImmutableString("a\0b"), "ab", "é", "\uffff", "😀", new Uint8Array(), new Uint8Array([0]), [], [null], [1], [1, 1], [2], [[]],
    {}, { $a: 1 }, { a: 1 }, { a: 1, b: 0 }, { a: 2 }, { b: 0 }, new UnknownValue({ type: 12, bytes: "" }),
  ]
  for (const [at, one] of ascending.entries()) {
    for (const [other, value] of ascending.entries()) {
      assert.equal(Math.sign(compareValues(one, value)), Math.sign(at - other), `${String(one)} and ${String(value)}`)
    }
  }
  assert.equal(compareValues(0, -0), 0)
  assert.equal(compareValues("x", new ImmutableString("x")), 0)
})

test("values are written as the server writes them, and read back", () => {
  const value = {
    text: "t", n: 1, f: 1.5, none: null, list: [true], $odd: 1, at: new Date(5), count: new Counter(3),
    fixed: new ImmutableString("s"), bytes: new Uint8Array([0, 255]), far: Infinity,
  }
  const json = {
    text: "t", n: 1, f: 1.5, none: null, list: [true], $$odd: 1, at: { $time: 5 }, count: { $counter: 3 },
    fixed: { $string: "s" }, bytes: { $bytes: "AP8=" }, far: { $f64: "inf" },
  }
  assert.deepEqual(toJson(value), json)
  assert.deepEqual(toJson(fromJson(json)), json)
  assert.equal(compareValues(fromJson(json), value), 0)
})

test("paths lead through maps and lists and not into special values", () => {
  assert.deepEqual(stepsOf("a\\.b.c"), ["a.b", "c"])
  assert.deepEqual(stepsOf("/a~1b/0"), ["a/b", "0"])
  const value = { a: [{ b: 1 }], t: new Date(5), "x.y": 2, toString: undefined }
  assert.deepEqual(["a.0.b", "x\\.y", "a.b", "a.1", "t.getTime", "constructor", "a.length"].map(path => valueAt(value, stepsOf(path))),
    [1, 2, undefined, undefined, undefined, undefined, undefined])
})

test("what is malformed is refused at once, with a code and what to do", async () => {
  const client = tidelog({ url: "http://127.0.0.1:9" })
  const all = client.collection<Record<string, unknown>>("c")
  const refused: [() => unknown, RegExp][] = [
    [() => all.where("a", "like" as "==", 1), /"like" is no operator/],
    [() => all.where("a", "toString" as "==", 1), /"toString" is no operator/],
    [() => all.where("a", "in", 5 as unknown as []), /\/a in: needs a list of values/],
    [() => all.where("a", "in", []), /has 0 values/],
    [() => all.where("a", "not-in", Array(11).fill(1)), /has 11 values/],
    [() => all.where("a", "exists", 1 as unknown as boolean), /needs true or false/],
    [() => all.where("a", "==", undefined as unknown), /undefined is no value/],
    [() => all.where("a", "==", (() => 1) as unknown), /function is no value/],
    [() => all.limit(0), /the limit is 0/],
    [() => all.limit(10_001), /the limit is 10001/],
    [() => all.limitToLast(1.5), /the limit is 1.5/],
    [() => all.limit("5" as unknown as number), /the limit is 5/],
    [() => all.orderBy("a", "up" as "asc"), /"up" is no direction/],
    [() => all.orderBy("a").orderBy("/a").onSnapshot(() => {}), /orders by \/a twice/],
    [() => all.startAt().onSnapshot(() => {}), /has 0 values/],
    [() => all.startAt(1, 2, 3).onSnapshot(() => {}), /has 3 values/],
    [() => all.where("a", ">", 1).where("a", "<", "b").onSnapshot(() => {}), /\/a is compared with 1 and with "b"/],
  ]
  for (const [attempt, why] of refused) {
    assert.throws(attempt, error => {
      assert.ok(error instanceof TidelogError, String(error))
      assert.match(error.message, why)
      assert.deepEqual([error.code, error.fix.length > 0], ["E0623", true])
      return true
    })
  }
  let deep = where("a", "==", 1)
  for (let level = 0; level < 10; level += 1) deep = { kind: "and", parts: [deep] }
  const wide = { kind: "and" as const, parts: Array(6).fill({ kind: "or", parts: [where("a", "==", 1), where("b", "==", 1)] }) }
  for (const [filter, why] of [
    [deep, /nested more than 8 deep/],
    [wide, /more than 30 alternatives/],
    [{ kind: "or" as const, parts: Array(101).fill(where("a", "==", 1)) }, /more than 100 conditions/],
    [where("a", "==", "x".repeat(70_000)), /more than 65536 bytes/],
  ] as const) {
    assert.throws(() => check({ ...EVERYTHING, filters: [filter] }), why)
  }
  assert.throws(() => client.collection("a/b"), { code: "E0607" })
  assert.throws(() => all.doc("nonsense"), { code: "E0607" })
  assert.throws(() => tidelog({ url: "nonsense" }), { code: "E0311" })
  await assert.rejects(all.add({ a: undefined }), { code: "E0604" })
  await client.close()
  assert.throws(() => all.onSnapshot(() => {}), { code: "E0406" })
  await assert.rejects(all.add({ a: 1 }), { code: "E0406" })
})

test("a query is written as the server reads it", () => {
  const spec = {
    filters: [where("a", "==", new Date(5)), where("b", "in", [1, 2])],
    order: [{ field: "a", direction: "desc" as const }],
    limit: 5,
    isFromEnd: true,
    start: { values: [1], isIncluded: false },
  }
  assert.deepEqual(specToJson(spec), {
    where: { and: [{ field: "a", op: "==", value: { $time: 5 } }, { field: "b", op: "in", value: [1, 2] }] },
    orderBy: [{ field: "a", direction: "desc" }],
    limitToLast: 5,
    startAfter: [1],
  })
})

test("the end of a token is read off it, where it says one", () => {
  const token = (claims: unknown) => `h.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.s`
  assert.equal(expiresIn(token({ exp: 1_000, sub: "???>>>" }), 400_000), 600_000)
  assert.equal(expiresIn(token({ exp: 1 }), 5_000), -4_000)
  for (const none of [undefined, "", "opaque", "a.b", "a.%%%.c", token({}), token({ exp: "soon" })]) {
    assert.equal(expiresIn(none, 0), undefined)
  }
})
