// Changes as they are written: their operations by name, so that they can be made anew. Values are carried as the bytes
// they are, whatever they mean.

import * as sha256 from "fast-sha256"
import {
  FormatError, readDeltas, readFlags, readRuns, Sink, Source, TEXT, UNSIGNED, writeDeltas, writeFlags, writeRuns,
} from "./columns.js"

/** The name of an operation, `counter@actor`, and of the object or list element that it makes. */
export type OpId = `${number}@${string}`
/** The begin of a list. */
export const HEAD = Symbol("head")
/** A field of a map, or the list element that is changed, or behind which one is inserted. */
export type Key = { field: string } | { element: OpId | typeof HEAD }

export const Action = { delete: 3, increment: 5, mark: 7 } as const

export interface Op {
  /** The object; null is the document itself. */
  readonly object: OpId | null
  readonly key: Key
  readonly isInsert: boolean
  readonly action: number
  /** Its type and length as they are written, and its bytes. */
  readonly value: { readonly meta: number | null; readonly bytes: Uint8Array }
  /** What it overwrites. */
  readonly overwrites: readonly OpId[]
  readonly expands: boolean
  /** Of the begin of a mark; null at its end. */
  readonly mark: string | null
}

export interface Change {
  readonly deps: readonly string[]
  readonly actor: string
  readonly seq: number
  readonly startOp: number
  readonly time: number
  readonly message: string
  readonly ops: readonly Op[]
}

const MAGIC = Uint8Array.of(0x85, 0x6f, 0x4a, 0x83)
const CHANGE = 1
const COLUMNS = {
  objectActor: 0x01, objectCounter: 0x02, keyActor: 0x11, keyCounter: 0x13, field: 0x15, insert: 0x34, action: 0x42,
  valueMeta: 0x56, valueBytes: 0x57, preds: 0x70, predActor: 0x71, predCounter: 0x73, expand: 0x94, mark: 0xa5,
} as const
/** More operations no server takes in one change. */
const OPS_MAX = 1_000_000

export const opId = (counter: number, actor: string): OpId => `${counter}@${actor}`
export const counterOf = (id: OpId): number => Number(id.slice(0, id.indexOf("@")))
export const actorOf = (id: OpId): string => id.slice(id.indexOf("@") + 1)
/** The names of a change's operations, in order. */
export const idsOf = ({ ops, startOp, actor }: Change): OpId[] => ops.map((_, at) => opId(startOp + at, actor))

export const toHex = (bytes: Uint8Array): string => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("")
const fromHex = (hex: string): Uint8Array => Uint8Array.from(hex.match(/../g) ?? [], byte => Number.parseInt(byte, 16))
export const hashOf = (bytes: Uint8Array): string => toHex(sha256.hash(bytes))

function named(actor: string | null | undefined, counter: number | null | undefined): OpId | null {
  return actor == null || counter == null ? null : opId(counter, actor)
}

/**
 * Reads a change. Whatever is in it and would not be written again as it was is an error, so that nothing is lost on
 * the way.
 */
export function readChange(bytes: Uint8Array): Change {
  const outer = new Source(bytes)
  outer.take(8)
  if (outer.take(1)[0] !== CHANGE) throw new FormatError("it is no change by itself")
  const source = new Source(outer.bytesWithLength())
  const deps = Array.from({ length: source.unsigned() }, () => toHex(source.take(32)))
  const actor = toHex(source.bytesWithLength())
  const [seq, startOp, time, message] = [source.unsigned(), source.unsigned(), source.signed(), source.text()]
  const actors = [actor, ...Array.from({ length: source.unsigned() }, () => toHex(source.bytesWithLength()))]
  const columns = new Map<number, Uint8Array>()
  const lengths = Array.from({ length: source.unsigned() }, () => [source.unsigned(), source.unsigned()] as const)
  for (const [column, length] of lengths) columns.set(column, source.take(length))
  const change = { deps, actor, seq, startOp, time, message, ops: readOps(columns, actors) }
  const again = writeChange(change).bytes
  if (again.length !== bytes.length || again.some((byte, at) => byte !== bytes[at])) throw new FormatError("it has parts that are not known")
  return change
}

function readOps(columns: ReadonlyMap<number, Uint8Array>, actors: readonly string[]): Op[] {
  const of = (column: number) => columns.get(column)
  const count = countOf(of(COLUMNS.action))
  const named_ = (column: number, length: number) => readRuns(of(column), UNSIGNED, length).map(at => (at === null ? null : actors[at]))
  const [objectActor, keyActor] = [named_(COLUMNS.objectActor, count), named_(COLUMNS.keyActor, count)]
  const objectCounter = readRuns(of(COLUMNS.objectCounter), UNSIGNED, count)
  const keyCounter = readDeltas(of(COLUMNS.keyCounter), count)
  const field = readRuns(of(COLUMNS.field), TEXT, count)
  const insert = readFlags(of(COLUMNS.insert), count)
  const action = readRuns(of(COLUMNS.action), UNSIGNED, count)
  const meta = readRuns(of(COLUMNS.valueMeta), UNSIGNED, count)
  const values = new Source(of(COLUMNS.valueBytes) ?? new Uint8Array())
  const preds = readRuns(of(COLUMNS.preds), UNSIGNED, count)
  const predCount = preds.reduce<number>((sum, length) => sum + (length ?? 0), 0)
  if (predCount > OPS_MAX) throw new FormatError("it overwrites too much")
  const predActor = named_(COLUMNS.predActor, predCount)
  const predCounter = readDeltas(of(COLUMNS.predCounter), predCount)
  const expand = readFlags(of(COLUMNS.expand), count)
  const mark = readRuns(of(COLUMNS.mark), TEXT, count)
  let pred = 0
  return action.map((kind, at) => {
    if (kind === null) throw new FormatError("an operation has no kind")
    const name = field[at]!
    const key: Key = name !== null ? { field: name } : { element: named(keyActor[at], keyCounter[at]) ?? HEAD }
    const overwrites = Array.from({ length: preds[at] ?? 0 }, () => {
      const id = named(predActor[pred], predCounter[pred])
      pred += 1
      if (id === null) throw new FormatError("it overwrites nothing that has a name")
      return id
    })
    const value = { meta: meta[at]!, bytes: values.take(Math.floor((meta[at] ?? 0) / 16)) }
    const object = named(objectActor[at], objectCounter[at])
    return { object, key, isInsert: insert[at]!, action: kind, value, overwrites, expands: expand[at]!, mark: mark[at]! }
  })
}

/** How many operations there are: one that has no kind is none. */
function countOf(actions: Uint8Array | undefined): number {
  let count = 0
  const source = new Source(actions ?? new Uint8Array())
  while (!source.isAtEnd && count <= OPS_MAX) {
    const length = source.signed()
    if (length === 0) throw new FormatError("an operation has no kind")
    for (let values = length > 0 ? 1 : -length; values > 0; values -= 1) source.unsigned()
    count += Math.abs(length)
  }
  if (count > OPS_MAX) throw new FormatError("it has too many operations")
  return count
}

/** Writes a change; its hash is its name. What is `behind` its columns is of a form of later days. */
export function writeChange(change: Change, behind = new Uint8Array()): { bytes: Uint8Array; hash: string } {
  const { ops } = change
  const ids = ops.flatMap(op => [op.object, "element" in op.key ? op.key.element : null, ...op.overwrites])
  const others = new Set(ids.filter((id): id is OpId => typeof id === "string").map(actorOf))
  others.delete(change.actor)
  const actors = [change.actor, ...[...others].sort()]
  const index = new Map(actors.map((actor, at) => [actor, at]))
  const actorAt = (id: OpId | typeof HEAD | null) => (typeof id === "string" ? index.get(actorOf(id))! : null)
  const counterAt = (id: OpId | null) => (id === null ? null : counterOf(id))
  const elements = ops.map(({ key }) => ("element" in key ? key.element : null))
  const preds = ops.flatMap(op => op.overwrites)
  const values = new Sink()
  for (const { value } of ops) values.put(value.bytes)
  const expand = ops.map(op => op.expands)
  const columns: [number, Uint8Array][] = [
    [COLUMNS.objectActor, writeRuns(ops.map(op => actorAt(op.object)), UNSIGNED)],
    [COLUMNS.objectCounter, writeRuns(ops.map(op => counterAt(op.object)), UNSIGNED)],
    [COLUMNS.keyActor, writeRuns(elements.map(actorAt), UNSIGNED)],
    [COLUMNS.keyCounter, writeDeltas(elements.map(id => (id === HEAD ? 0 : counterAt(id))))],
    [COLUMNS.field, writeRuns(ops.map(({ key }) => ("field" in key ? key.field : null)), TEXT)],
    [COLUMNS.insert, writeFlags(ops.map(op => op.isInsert))],
    [COLUMNS.action, writeRuns(ops.map(op => op.action), UNSIGNED)],
    [COLUMNS.valueMeta, writeRuns(ops.map(op => op.value.meta), UNSIGNED)],
    [COLUMNS.valueBytes, values.written],
    [COLUMNS.preds, writeRuns(ops.map(op => op.overwrites.length), UNSIGNED)],
    [COLUMNS.predActor, writeRuns(preds.map(actorAt), UNSIGNED)],
    [COLUMNS.predCounter, writeDeltas(preds.map(counterAt))],
    [COLUMNS.expand, expand.includes(true) ? writeFlags(expand) : new Uint8Array()],
    [COLUMNS.mark, writeRuns(ops.map(op => op.mark), TEXT)],
  ]
  const body = new Sink()
  body.unsigned(change.deps.length)
  for (const dep of [...change.deps].sort()) body.put(fromHex(dep))
  body.bytesWithLength(fromHex(change.actor))
  body.unsigned(change.seq)
  body.unsigned(change.startOp)
  body.signed(change.time)
  body.text(change.message)
  body.unsigned(actors.length - 1)
  for (const actor of actors.slice(1)) body.bytesWithLength(fromHex(actor))
  const filled = columns.filter(([, bytes]) => bytes.length > 0)
  body.unsigned(filled.length)
  for (const [column, bytes] of filled) {
    body.unsigned(column)
    body.unsigned(bytes.length)
  }
  for (const [, bytes] of filled) body.put(bytes)
  body.put(behind)

  const chunk = new Sink()
  chunk.put(Uint8Array.of(CHANGE))
  chunk.bytesWithLength(body.written)
  const hash = sha256.hash(chunk.written)
  const whole = new Sink()
  whole.put(MAGIC)
  whole.put(hash.subarray(0, 4))
  whole.put(chunk.written)
  return { bytes: whole.written.slice(), hash: toHex(hash) }
}
