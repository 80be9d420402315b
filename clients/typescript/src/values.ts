// Values of documents: as JavaScript has them, as the server writes them in JSON, and their order
// (docs/queries.md, section 1).

import { Counter, ImmutableString } from "@automerge/automerge/slim"
import { malformed } from "./error.js"

/** A value of a type that only a newer tidelog or Automerge knows, as the server wrote it. */
export class UnknownValue {
  constructor(readonly json: unknown) {}
}

const DEPTH_MAX = 128

/** A value as the server writes it. */
export function toJson(value: unknown, depth = 0): unknown {
  if (depth > DEPTH_MAX) throw malformed(`values are nested more than ${DEPTH_MAX} deep`, "compare with something simpler")
  switch (typeof value) {
    case "boolean":
    case "string":
      return value
    case "number":
      if (Number.isFinite(value)) return Object.is(value, -0) ? 0 : value
      return { $f64: Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf" }
    case "bigint":
      return Number(value)
    case "object":
      return value === null ? null : objectToJson(value, depth)
    default:
      throw malformed(`${typeof value} is no value of a document`, "give null, a boolean, a number, a text, a Date, bytes, a list or a map")
  }
}

function objectToJson(value: object, depth: number): unknown {
  if (Array.isArray(value)) return value.map(item => toJson(item, depth + 1))
  if (value instanceof Date) {
    if (Number.isNaN(value.getTime())) throw malformed("a Date is invalid", "give one that is a time")
    return { $time: value.getTime() }
  }
  if (value instanceof Uint8Array) return { $bytes: base64Of(value) }
  if (value instanceof UnknownValue) return { $unknown: value.json }
  if (isCounter(value)) return { $counter: value.value }
  if (isImmutable(value)) return { $string: value.toString() }
  const entries = Object.entries(value).map(([key, item]) => [key.startsWith("$") ? `$${key}` : key, toJson(item, depth + 1)])
  return Object.fromEntries(entries)
}

/** A value that the server wrote. Integers above 2^53 are rounded, as JavaScript reads them in JSON. */
export function fromJson(json: unknown): unknown {
  if (typeof json !== "object" || json === null) return json
  if (Array.isArray(json)) return json.map(fromJson)
  const entries = Object.entries(json)
  const [first] = entries
  if (entries.length === 1 && first && first[0].startsWith("$") && !first[0].startsWith("$$")) {
    const [form, value] = first
    if (form === "$counter" && typeof value === "number") return new Counter(value)
    if (form === "$time" && typeof value === "number") return new Date(value)
    if (form === "$bytes" && typeof value === "string") return bytesOf(value)
    if (form === "$string" && typeof value === "string") return new ImmutableString(value)
    if (form === "$f64") return value === "inf" ? Infinity : value === "-inf" ? -Infinity : NaN
    return new UnknownValue(value)
  }
  const members = entries.map(([key, value]) => [key.startsWith("$$") ? key.slice(1) : key, fromJson(value)])
  return Object.fromEntries(members)
}

/** The value that `steps` lead to; undefined where there is none. */
export function valueAt(value: unknown, steps: readonly string[]): unknown {
  let found = value
  for (const step of steps) {
    if (Array.isArray(found)) {
      found = /^\d+$/.test(step) ? found[Number(step)] : undefined
    } else if (isMap(found) && Object.hasOwn(found, step)) {
      found = found[step]
    } else {
      return undefined
    }
  }
  return found
}

/** A map of a document, and none of the special types. */
export function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && kindOf(value) === Kind.Map
}

/** The types of values, in their order. Both booleans are of one type. */
export enum Kind { Null, Boolean, Number, Time, Text, Bytes, List, Map, Unknown }

export function kindOf(value: unknown): Kind {
  switch (typeof value) {
    case "boolean":
      return Kind.Boolean
    case "number":
    case "bigint":
      return Kind.Number
    case "string":
      return Kind.Text
    case "object":
      if (value === null) return Kind.Null
      if (Array.isArray(value)) return Kind.List
      if (value instanceof Date) return Kind.Time
      if (value instanceof Uint8Array) return Kind.Bytes
      if (value instanceof UnknownValue) return Kind.Unknown
      if (isCounter(value)) return Kind.Number
      if (isImmutable(value)) return Kind.Text
      return Kind.Map
    default:
      return Kind.Unknown
  }
}

/**
 * Below zero, zero or above it, as `a` comes before `b`, is the same, or comes after it. All of both values is
 * compared; the server takes of what has more than 1,536 bytes the first 1,500 and a digest, so that for two values
 * which agree that far its order is another.
 */
export function compareValues(a: unknown, b: unknown): number {
  const kind = kindOf(a)
  const other = kindOf(b)
  if (kind !== other) return kind - other
  switch (kind) {
    case Kind.Null:
      return 0
    case Kind.Boolean:
      return Number(a) - Number(b)
    case Kind.Number:
      return compareNumbers(numberOf(a), numberOf(b))
    case Kind.Time:
      return (a as Date).getTime() - (b as Date).getTime()
    case Kind.Text:
      return compareTexts(textOf(a), textOf(b))
    case Kind.Bytes:
      return compareBytes(a as Uint8Array, b as Uint8Array)
    case Kind.List:
      return compareLists(a as unknown[], b as unknown[])
    case Kind.Map:
      return compareMaps(a as Record<string, unknown>, b as Record<string, unknown>)
    case Kind.Unknown:
      return compareTexts(JSON.stringify((a as UnknownValue).json) ?? "", JSON.stringify((b as UnknownValue).json) ?? "")
  }
}

function compareNumbers(a: number | bigint, b: number | bigint): number {
  const [isNone, isOtherNone] = [Number.isNaN(a), Number.isNaN(b)]
  if (isNone || isOtherNone) return Number(isOtherNone) - Number(isNone)
  return a < b ? -1 : a > b ? 1 : 0
}

/** By code points, which is the order of their UTF-8 bytes. */
export function compareTexts(a: string, b: string): number {
  const length = Math.min(a.length, b.length)
  for (let at = 0; at < length; at += 1) {
    const [one, other] = [a.charCodeAt(at), b.charCodeAt(at)]
    if (one !== other) return inOrderOfPoints(one) - inOrderOfPoints(other)
  }
  return a.length - b.length
}

/** Halves of code points above U+FFFF come after all that are below it. */
function inOrderOfPoints(unit: number): number {
  if (unit < 0xd800) return unit
  return unit < 0xe000 ? unit + 0x2000 : unit - 0x800
}

export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length)
  for (let at = 0; at < length; at += 1) {
    const difference = (a[at] ?? 0) - (b[at] ?? 0)
    if (difference !== 0) return difference
  }
  return a.length - b.length
}

function compareLists(a: readonly unknown[], b: readonly unknown[]): number {
  for (let at = 0; at < Math.min(a.length, b.length); at += 1) {
    const order = compareValues(a[at], b[at])
    if (order !== 0) return order
  }
  return a.length - b.length
}

function compareMaps(a: Record<string, unknown>, b: Record<string, unknown>): number {
  const [keys, others] = [Object.keys(a).sort(compareTexts), Object.keys(b).sort(compareTexts)]
  for (const [at, key] of keys.entries()) {
    const other = others[at]
    if (other === undefined) return 1
    const order = compareTexts(key, other) || compareValues(a[key], b[other])
    if (order !== 0) return order
  }
  return keys.length - others.length
}

function numberOf(value: unknown): number | bigint {
  return typeof value === "number" || typeof value === "bigint" ? value : (value as Counter).value
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : String(value)
}

// An application may have another copy of Automerge than this package, whose classes are not the same.

function isCounter(value: object): value is Counter {
  return value instanceof Counter || value.constructor?.name === "Counter" || value.constructor?.name === "WriteableCounter"
}

function isImmutable(value: object): value is ImmutableString {
  return value instanceof ImmutableString || value.constructor?.name === "ImmutableString"
}

export function base64Of(bytes: Uint8Array): string {
  let binary = ""
  for (const byte of bytes) binary += String.fromCharCode(byte)
  return btoa(binary)
}

export function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(atob(text), sign => sign.charCodeAt(0))
}
