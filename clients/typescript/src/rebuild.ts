// A document without changes that were refused: what stands on them falls with them, and is made anew as far as it has a
// meaning without.
//
// What is made anew follows from what it is made of alone: same authors, same numbers, same bytes, wherever and however
// often it is done. So a page that ends in the middle of it, and a second one on the same storage, add nothing twice.

import * as A from "@automerge/automerge/slim"
import { Rebase } from "./rebase.js"
import { hashOf, readChange, writeChange, type Change } from "./written.js"

export type Patches = A.Patch[]

/** A refused change that was taken out. */
export interface Taken {
  hash: string
  /** It, as it is written; of a document that was refused as a whole all its changes. */
  changes: Uint8Array[]
  /** What it did. */
  patches: Patches
  /** Operations on top of it that were left out. */
  leftOut: number
  /** Why it could not be made anew, though it was not refused itself. */
  fault?: string
}

export interface Rebuilt<T> {
  doc: A.Doc<T>
  /** The heads of what stays as it was. */
  kept: string[]
  taken: Taken[]
  /** What became of the changes that fell. */
  fates: Fates
}

export interface Fate {
  /** What stands for it now: itself as it was made anew, or what it stood on. */
  now: string[]
  /** The refused change: itself, or one that it stood on. */
  refused: string
}

export type Fates = Map<string, Fate>

interface Fallen {
  hash: string
  bytes: Uint8Array
  deps: string[]
  actor: string
  /** It is refused itself: nothing that it stands on falls. */
  isGone: boolean
}

/**
 * The document without the changes in `refused`; nothing when it has none of them. What it stands on alone decides
 * whether a change is refused: with one that falls it falls, and is made anew.
 */
export function rebuild<T>(doc: A.Doc<T>, refused: ReadonlySet<string>): Rebuilt<T> | undefined {
  if (![...refused].some(hash => A.hasHeads(doc, [hash]))) return undefined
  const metas = A.getChangesMetaSince(doc, [])
  const falling = new Map<string, Fallen>()
  const heads = new Set<string>()
  for (const { hash, deps, actor } of metas) {
    const falls = deps.some(dep => falling.has(dep))
    if (falls || refused.has(hash)) {
      falling.set(hash, { hash, deps, actor, isGone: !falls, bytes: new Uint8Array() })
    } else {
      for (const dep of deps) heads.delete(dep)
      heads.add(hash)
    }
  }
  if (falling.size === 0) return undefined
  const kept = [...heads].sort()
  for (const bytes of A.getChangesSince(doc, kept)) {
    const fallen = falling.get(hashOf(bytes.subarray(8)))
    if (fallen) fallen.bytes = bytes
  }
  const fallen = [...falling.values()]
  const patchesOf = ({ deps, hash }: Fallen) => A.diff(doc, deps, [hash])
  if (kept.length === 0) {
    // Of a document that may not be there nothing is made anew: there would be a part of it.
    const taken = { hash: fallen[0]!.hash, changes: fallen.map(({ bytes }) => bytes), patches: A.diff(doc, [], A.getHeads(doc)), leftOut: 0 }
    return { doc: A.init<T>(), kept, taken: [taken], fates: allRefused(fallen) }
  }
  const base = A.clone(A.view(doc, kept))
  const take = (one: Fallen, leftOut: number): Taken => ({ hash: one.hash, changes: [one.bytes], patches: patchesOf(one), leftOut })
  try {
    const made = makeAnew(falling, metas)
    const [now] = A.applyChanges(base, made.changes)
    const gone = fallen.filter(({ isGone }) => isGone)
    return { doc: now, kept, taken: gone.map(one => take(one, made.leftOut.get(one.hash) ?? 0)), fates: made.fates }
  } catch (error) {
    const fault = `what it stood on was refused, and without that it cannot be made: ${String(error)}`
    const taken = fallen.map(one => ({ ...take(one, 0), ...(one.isGone ? {} : { fault }) }))
    return { doc: A.clone(A.view(doc, kept)), kept, taken, fates: allRefused(fallen) }
  }
}

const allRefused = (fallen: readonly Fallen[]): Fates => new Map(fallen.map(({ hash }) => [hash, { now: [], refused: hash }]))

type Meta = { hash: string; deps: string[]; maxOp: number }

function makeAnew(falling: ReadonlyMap<string, Fallen>, metas: readonly Meta[]): { changes: Uint8Array[]; fates: Fates; leftOut: ReadonlyMap<string, number> } {
  const fallen = [...falling.values()]
  const gone = fallen.filter(({ isGone }) => isGone).map(({ hash }) => hash).sort()
  // What is not made anew need not be understood.
  if (gone.length === fallen.length) return { changes: [], fates: allRefused(fallen), leftOut: new Map() }
  const fates: Fates = new Map()
  const graph = new Map(metas.map(meta => [meta.hash, meta]))
  const rebase = new Rebase()
  const changes: Uint8Array[] = []
  const authors = new Map<string, { actor: string; seq: number }>()
  for (const one of fallen) {
    const change = readChange(one.bytes)
    const deps = newestOf(new Set(one.deps.flatMap(dep => fates.get(dep)?.now ?? [dep])), graph)
    // The first of an author's that falls, and what is gone, is what all that is made anew for him follows from.
    const author = authors.get(one.actor) ?? { actor: actorFor(one.hash, gone), seq: 0 }
    authors.set(one.actor, author)
    if (one.isGone) {
      rebase.lose(one.hash, change)
      fates.set(one.hash, { now: deps, refused: one.hash })
      continue
    }
    const refused = one.deps.map(dep => fates.get(dep)?.refused).find(hash => hash !== undefined) ?? one.hash
    // Counters stay, so that of two who wrote at once the same one wins.
    const place = { actor: author.actor, seq: author.seq + 1, startOp: change.startOp, deps }
    const anew = rebase.make(one.hash, change, place, hash => standsOn(one, hash, falling))
    if (!anew) {
      fates.set(one.hash, { now: deps, refused })
      continue
    }
    author.seq += 1
    const { bytes, hash } = writeChange(anew)
    changes.push(bytes)
    graph.set(hash, { hash, deps, maxOp: anew.startOp + anew.ops.length - 1 })
    fates.set(one.hash, { now: [hash], refused })
  }
  return { changes, fates, leftOut: rebase.leftOut }
}

/** Whether a change that falls stands on another one. */
function standsOn(one: Fallen, other: string, falling: ReadonlyMap<string, Fallen>): boolean {
  const seen = new Set<string>()
  const left = [...one.deps]
  for (let hash = left.pop(); hash !== undefined; hash = left.pop()) {
    if (hash === other) return true
    if (seen.has(hash)) continue
    seen.add(hash)
    left.push(...(falling.get(hash)?.deps ?? []))
  }
  return false
}

function actorFor(first: string, gone: readonly string[]): string {
  return hashOf(new TextEncoder().encode(["tidelog rebase 1", first, ...gone].join(" "))).slice(0, 32)
}

/** Those of some changes on which no other of them stands. */
function newestOf(hashes: ReadonlySet<string>, graph: ReadonlyMap<string, Meta>): string[] {
  if (hashes.size < 2) return [...hashes]
  const newest = new Set(hashes)
  const lowest = Math.min(...[...hashes].map(hash => graph.get(hash)?.maxOp ?? 0))
  const seen = new Set<string>()
  const left = [...hashes].flatMap(hash => graph.get(hash)?.deps ?? [])
  for (let hash = left.pop(); hash !== undefined; hash = left.pop()) {
    if (seen.has(hash)) continue
    seen.add(hash)
    newest.delete(hash)
    const meta = graph.get(hash)
    // What has fewer operations below it than each of them stands on none of them.
    if (meta && meta.maxOp >= lowest) left.push(...meta.deps)
  }
  return [...newest].sort()
}

/** Changes as somebody would make them now, on top of all that the document has. What they refer to is in it. */
export function makeOnTop<T>(doc: A.Doc<T>, changes: readonly Uint8Array[]): A.Doc<T> {
  const rebase = new Rebase()
  const actor = A.getActorId(A.init())
  let [deps, next, seq] = [A.getHeads(doc), 1, 0]
  for (const { maxOp } of A.getChangesMetaSince(doc, [])) next = Math.max(next, maxOp + 1)
  const made: Uint8Array[] = []
  for (const bytes of changes) {
    const old: Change = readChange(bytes)
    const change = rebase.make("", old, { actor, seq: seq + 1, startOp: next, deps }, () => false)
    if (!change) continue
    const written = writeChange(change)
    made.push(written.bytes)
    deps = [written.hash]
    seq += 1
    next += change.ops.length
  }
  return A.applyChanges(doc, made)[0]
}

/** Whether a document has all that changes stand on and do not bring themselves. */
export function isWithin(doc: A.Doc<unknown>, changes: readonly Uint8Array[]): boolean {
  const brought = new Set(changes.map(bytes => hashOf(bytes.subarray(8))))
  return A.hasHeads(doc, changes.flatMap(bytes => readChange(bytes).deps).filter(dep => !brought.has(dep)))
}
