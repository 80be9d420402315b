// What a query asks for, held against the bounds of docs/queries.md, section 1.

import { malformed } from "./error.js"
import { pointerOf, stepsOf } from "./path.js"
import { kindOf, toJson } from "./values.js"
import type { Direction, Operator } from "./types.js"

/** Conditions, joined by *and* and *or*. Made with `where()`, `and()` and `or()`. */
export type Filter =
  | { readonly kind: "condition"; readonly field: string; readonly op: Operator; readonly value: unknown }
  | { readonly kind: "and" | "or"; readonly parts: readonly Filter[] }

/** Where a result begins or ends. */
export interface Edge {
  readonly values: readonly unknown[]
  /** The id of a document, behind the values. */
  readonly id?: string
  /** What has just these values is in the result. */
  readonly isIncluded: boolean
}

/** What a query asks for. */
export interface QuerySpec {
  readonly filters: readonly Filter[]
  readonly order: readonly { readonly field: string; readonly direction: Direction }[]
  readonly limit?: number
  /** The limit takes the last ones. */
  readonly isFromEnd?: boolean
  readonly start?: Edge
  readonly end?: Edge
}

export const EVERYTHING: QuerySpec = { filters: [], order: [] }

/** The operators, each with its other name. */
const OPERATORS: Record<string, Operator> = {
  "==": "==", eq: "==", "!=": "!=", ne: "!=", "<": "<", lt: "<", "<=": "<=", le: "<=", ">": ">", gt: ">", ">=": ">=", ge: ">=",
  in: "in", "not-in": "not-in", "array-contains": "array-contains", "array-contains-any": "array-contains-any", exists: "exists",
}

const LIMIT_MAX = 10_000
const ORDERINGS_MAX = 8
const CONDITIONS_MAX = 100
const DEPTH_MAX = 8
const ALTERNATIVES_MAX = 30
const VALUE_BYTES_MAX = 64 * 1024
const LISTED_MAX: Partial<Record<Operator, number>> = { in: 30, "array-contains-any": 30, "not-in": 10 }

export function isRange(op: Operator): boolean {
  return op === "<" || op === "<=" || op === ">" || op === ">="
}

/** A condition, refused when it can hold of nothing. */
export function condition(field: string, op: string, value: unknown): Filter {
  if (typeof field !== "string") throw malformed(`${String(field)} is no field`, "name it by a path, author.name")
  const operator = Object.hasOwn(OPERATORS, op) ? OPERATORS[op] : undefined
  if (operator === undefined) {
    throw malformed(`${JSON.stringify(String(op).slice(0, 64))} is no operator`, `use one of ${[...new Set(Object.values(OPERATORS))].join(" ")}`)
  }
  const place = `${pointerOf(stepsOf(field))} ${operator}`
  const max = LISTED_MAX[operator]
  if (max !== undefined) {
    if (!Array.isArray(value)) throw malformed(`${place}: needs a list of values`, "give a list")
    if (value.length === 0 || value.length > max) throw malformed(`${place}: has ${value.length} values`, `give 1 to ${max} values`)
  }
  if (operator === "exists" && typeof value !== "boolean") throw malformed(`${place}: needs true or false`, "give one of them")
  // What is no value of a document is refused here, where its line is.
  toJson(value)
  return { kind: "condition", field, op: operator, value }
}

/** A limit, refused when no result has it. */
export function limited(limit: number): number {
  if (!Number.isInteger(limit) || limit < 1 || limit > LIMIT_MAX) {
    throw malformed(`the limit is ${String(limit)}`, `give a number from 1 to ${LIMIT_MAX}`)
  }
  return limit
}

/** The query as the server reads it. */
export function specToJson(spec: QuerySpec): Record<string, unknown> {
  const json: Record<string, unknown> = {}
  const where = spec.filters.map(filterToJson)
  if (where.length === 1) json["where"] = where[0]
  if (where.length > 1) json["where"] = { and: where }
  if (spec.order.length > 0) json["orderBy"] = spec.order.map(({ field, direction }) => ({ field, direction }))
  if (spec.limit !== undefined) json[spec.isFromEnd ? "limitToLast" : "limit"] = spec.limit
  const edge = ({ values, id }: Edge) => [...values.map(value => toJson(value)), ...(id === undefined ? [] : [id])]
  if (spec.start) json[spec.start.isIncluded ? "startAt" : "startAfter"] = edge(spec.start)
  if (spec.end) json[spec.end.isIncluded ? "endAt" : "endBefore"] = edge(spec.end)
  return json
}

function filterToJson(filter: Filter): unknown {
  if (filter.kind === "condition") return { field: filter.field, op: filter.op, value: toJson(filter.value) }
  return { [filter.kind]: filter.parts.map(filterToJson) }
}

type Condition = Extract<Filter, { kind: "condition" }>

/** Every condition in it. */
export function conditionsOf(filter: Filter): Condition[] {
  return filter.kind === "condition" ? [filter] : filter.parts.flatMap(conditionsOf)
}

/** Refuses what the server would refuse, so that it is known at once and without one. */
export function check(spec: QuerySpec): void {
  const conditions = spec.filters.flatMap(conditionsOf)
  if (conditions.length > CONDITIONS_MAX) throw malformed(`there are more than ${CONDITIONS_MAX} conditions`, "ask for less at a time")
  const root: Filter = { kind: "and", parts: spec.filters }
  if (depthOf(root) > DEPTH_MAX + 1) throw malformed(`conditions are nested more than ${DEPTH_MAX} deep`, "write them flatter")
  const bytes = conditions.reduce((sum, { value }) => sum + new TextEncoder().encode(JSON.stringify(toJson(value))).length, 0)
  if (bytes > VALUE_BYTES_MAX) throw malformed(`the values take more than ${VALUE_BYTES_MAX} bytes`, "ask for less at a time")
  for (const all of alternativesOf(root)) checkRanges(all)
  if (spec.order.length > ORDERINGS_MAX) throw malformed(`it orders by ${spec.order.length} fields`, `order by ${ORDERINGS_MAX} at most`)
  const pointers = spec.order.map(({ field }) => pointerOf(stepsOf(field)))
  const twice = pointers.find((pointer, at) => pointers.indexOf(pointer) !== at)
  if (twice !== undefined) throw malformed(`it orders by ${twice} twice`, "name it once")
  const fields = orderOf(spec).length
  for (const edge of [spec.start, spec.end]) {
    if (!edge) continue
    const count = edge.values.length + (edge.id === undefined ? 0 : 1)
    if (count === 0 || edge.values.length > fields || (edge.id !== undefined && edge.values.length !== fields)) {
      throw malformed(`a start or end has ${count} values`, `give 1 to ${fields + 1}, one for each field that is ordered by, and a document's id last`)
    }
  }
}

function depthOf(filter: Filter): number {
  return filter.kind === "condition" ? 0 : 1 + Math.max(0, ...filter.parts.map(depthOf))
}

/** The conditions written as alternatives, each of which asks all of its conditions. */
function alternativesOf(filter: Filter): Condition[][] {
  if (filter.kind === "condition") return [[filter]]
  let all: Condition[][] = filter.kind === "and" ? [[]] : []
  for (const part of filter.parts) {
    const more = alternativesOf(part)
    const count = filter.kind === "and" ? all.length * more.length : all.length + more.length
    if (count > ALTERNATIVES_MAX) {
      throw malformed(`written out, there are more than ${ALTERNATIVES_MAX} alternatives`, "use `in` for values of one field, or ask twice")
    }
    all = filter.kind === "and" ? all.flatMap(one => more.map(other => [...one, ...other])) : [...all, ...more]
  }
  return all
}

/** Ranges of two types on one field would find nothing: whoever asks for that made a mistake. */
function checkRanges(conditions: Condition[]): void {
  const seen = new Map<string, unknown>()
  for (const { field, op, value } of conditions) {
    if (!isRange(op)) continue
    const pointer = pointerOf(stepsOf(field))
    if (seen.has(pointer) && kindOf(seen.get(pointer)) !== kindOf(value)) {
      const [one, other] = [seen.get(pointer), value].map(each => JSON.stringify(toJson(each)))
      throw malformed(`${pointer} is compared with ${one} and with ${other}`, "a range holds values of one type: compare with that")
    }
    seen.set(pointer, value)
  }
}

/** Every field that a query orders by, given or implied by a range. */
export function orderOf(spec: QuerySpec): { steps: string[]; isDescending: boolean }[] {
  const given = spec.order.map(({ field, direction }) => ({ steps: stepsOf(field), isDescending: direction === "desc" }))
  const isDescending = given.at(-1)?.isDescending ?? false
  const named = new Set(given.map(({ steps }) => pointerOf(steps)))
  const ranges = spec.filters.flatMap(conditionsOf).filter(({ op }) => isRange(op))
  const implied = new Map(ranges.map(({ field }) => stepsOf(field)).map(steps => [pointerOf(steps), steps]))
  const more = [...implied].filter(([pointer]) => !named.has(pointer)).sort(([a], [b]) => (a < b ? -1 : 1))
  return [...given, ...more.map(([, steps]) => ({ steps, isDescending }))]
}
