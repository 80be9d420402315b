// Which documents a query finds, and in which order: what the server does, done here for what this client holds.

import { stepsOf } from "./path.js"
import { orderOf, type Edge, type Filter, type QuerySpec } from "./query-spec.js"
import { compareBytes, compareValues, kindOf, Kind, valueAt } from "./values.js"
import { binaryIdOf } from "./ids.js"

/** Where a document stands in a result. */
export interface Place {
  readonly keys: readonly unknown[]
  readonly id: Uint8Array
}

type Test = (document: unknown) => boolean

/** A query, ready to be asked of documents. */
export class Shape {
  readonly #order: { steps: string[]; isDescending: boolean }[]
  readonly #tests: Test[]
  readonly #isDescending: boolean
  readonly #edges: [Edge | undefined, Edge | undefined]

  constructor(readonly spec: QuerySpec) {
    this.#order = orderOf(spec)
    this.#tests = spec.filters.map(testOf)
    this.#isDescending = this.#order.at(-1)?.isDescending ?? false
    this.#edges = [spec.start, spec.end]
  }

  /** The place of a document that the query finds; undefined when it does not find it. */
  find(documentId: string, value: unknown): Place | undefined {
    if (!this.#tests.every(test => test(value))) return undefined
    const place = this.placeOf(documentId, value)
    if (place.keys.includes(undefined)) return undefined
    const [start, end] = this.#edges
    if (start) {
      const order = this.#compareWithEdge(place, start)
      if (order < 0 || (order === 0 && !start.isIncluded)) return undefined
    }
    if (end) {
      const order = this.#compareWithEdge(place, end)
      if (order > 0 || (order === 0 && !end.isIncluded)) return undefined
    }
    return place
  }

  /** The place of a document that is known to be in the result. */
  placeOf(documentId: string, value: unknown): Place {
    return { keys: this.#order.map(({ steps }) => valueAt(value, steps)), id: binaryIdOf(documentId) }
  }

  compare(a: Place, b: Place): number {
    for (const [at, { isDescending }] of this.#order.entries()) {
      const order = compareValues(a.keys[at], b.keys[at])
      if (order !== 0) return isDescending ? -order : order
    }
    const order = compareBytes(a.id, b.id)
    return this.#isDescending ? -order : order
  }

  /** The first or the last so many of what is in order. */
  cut<T>(inOrder: T[]): T[] {
    const { limit, isFromEnd } = this.spec
    if (limit === undefined || inOrder.length <= limit) return inOrder
    return isFromEnd ? inOrder.slice(-limit) : inOrder.slice(0, limit)
  }

  /** The values of a document that an edge of this query has. */
  edgeOf(value: unknown): unknown[] {
    return this.#order.map(({ steps }) => valueAt(value, steps))
  }

  #compareWithEdge(place: Place, { values, id }: Edge): number {
    for (const [at, value] of values.entries()) {
      const order = compareValues(place.keys[at], value)
      if (order !== 0) return this.#order[at]?.isDescending ? -order : order
    }
    if (id === undefined) return 0
    const order = compareBytes(place.id, binaryIdOf(id))
    return this.#isDescending ? -order : order
  }
}

function testOf(filter: Filter): Test {
  if (filter.kind !== "condition") {
    const tests = filter.parts.map(testOf)
    return filter.kind === "and" ? document => tests.every(test => test(document)) : document => tests.some(test => test(document))
  }
  const { op, value } = filter
  const steps = stepsOf(filter.field)
  if (op === "exists") return document => (valueAt(document, steps) !== undefined) === value
  const holds = holding(op, value)
  return document => {
    const found = valueAt(document, steps)
    return found !== undefined && holds(found)
  }
}

function holding(op: string, value: unknown): (found: unknown) => boolean {
  const listed = Array.isArray(value) ? value : []
  const same = (a: unknown, b: unknown) => compareValues(a, b) === 0
  const range = (holds: (order: number) => boolean) => (found: unknown) =>
    kindOf(found) === kindOf(value) && holds(compareValues(found, value))
  switch (op) {
    case "==":
      return found => same(found, value)
    case "!=":
      return found => kindOf(found) !== Kind.Null && !same(found, value)
    case "<":
      return range(order => order < 0)
    case "<=":
      return range(order => order <= 0)
    case ">":
      return range(order => order > 0)
    case ">=":
      return range(order => order >= 0)
    case "in":
      return found => listed.some(each => same(found, each))
    case "not-in":
      return found => kindOf(found) !== Kind.Null && !listed.some(each => same(found, each))
    case "array-contains":
      return found => Array.isArray(found) && found.some(item => same(item, value))
    default:
      return found => Array.isArray(found) && found.some(item => listed.some(each => same(item, each)))
  }
}
