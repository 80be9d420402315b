// Making changes anew that stood on others which are taken back: what src/document/rebase.rs does, for this client.
//
// A change is bound by its hash to everything below it. When something below may not stay, what was made on top of it is
// made once more by another author, as the same operations: what they name is named anew where it was made anew, and
// what stood between is stepped over. An operation on something that is gone (a field of an object that was never there,
// the deletion of a character that was never typed) has no meaning any more and is left out.

import { Action, actorOf, counterOf, HEAD, idsOf, opId, type Change, type Key, type Op, type OpId } from "./written.js"

/** What became of an operation that is made anew, or gone. */
type Fate =
  | { anew: OpId }
  /** What it overwrote, what list element it followed if it made one, and the refused change that is to blame. */
  | { overwrote: readonly OpId[]; followed: OpId | typeof HEAD | undefined; cause: string }

/** A deletion that is gone: whoever wrote there later did not see it, and would not overwrite what it had deleted. */
interface Deletion {
  change: string
  overwrote: readonly OpId[]
}

/** As whom a change is made anew, and on top of what. */
export type Place = Pick<Change, "actor" | "seq" | "startOp" | "deps">

const placeOf = (object: OpId | null, key: Key) => JSON.stringify([object, "field" in key ? key.field : [String(key.element)]])

export class Rebase {
  /** How many operations were left out, for each refused change that they needed. */
  readonly leftOut = new Map<string, number>()
  readonly #fates = new Map<OpId, Fate>()
  readonly #deletions = new Map<string, Deletion[]>()

  /** A change that is gone. */
  lose(hash: string, change: Change): void {
    const ids = idsOf(change)
    for (const [at, op] of change.ops.entries()) this.#lose(ids[at]!, op, hash, hash)
  }

  /**
   * A change as it is made anew; nothing when nothing is left of it to make. All that it stands on was lost or made
   * before. `below` says whether it stands on a change.
   */
  make(hash: string, old: Change, place: Place, below: (hash: string) => boolean): Change | undefined {
    const ops: Op[] = []
    let begun: { key: Key; id: OpId } | undefined
    const ids = idsOf(old)
    for (const [at, op] of old.ops.entries()) {
      const made = this.#anew(op, below)
      if (typeof made === "string") {
        this.leftOut.set(made, (this.leftOut.get(made) ?? 0) + 1)
        this.#lose(ids[at]!, op, made, hash)
        continue
      }
      const id = opId(place.startOp + ops.length, place.actor)
      let { key } = made
      if (op.action === Action.mark && op.mark !== null) {
        begun = { key, id }
      } else if (op.action === Action.mark && begun && placeOf(null, begun.key) === placeOf(null, key)) {
        // All between is gone. Of two that follow one element the later comes first, and a mark must not end before it
        // begins.
        key = { element: begun.id }
      }
      this.#fates.set(ids[at]!, { anew: id })
      ops.push({ ...made, key })
    }
    return ops.length === 0 ? undefined : { ...place, time: old.time, message: old.message, ops }
  }

  #lose(id: OpId, op: Op, cause: string, change: string): void {
    const followed = op.isInsert && "element" in op.key ? op.key.element : undefined
    if (op.action === Action.delete && "field" in op.key) {
      const place = placeOf(op.object, op.key)
      this.#deletions.set(place, [...(this.#deletions.get(place) ?? []), { change, overwrote: op.overwrites }])
    }
    this.#fates.set(id, { overwrote: op.overwrites, followed, cause })
  }

  /** The operation as it is made anew; the refused change for which it has no meaning any more. */
  #anew(op: Op, below: (hash: string) => boolean): Op | string {
    const object = op.object === null ? null : this.#nowOf(op.object)
    if (object !== null && typeof object !== "string") return object.cause
    let { key } = op
    if ("element" in key && key.element !== HEAD) {
      if (op.isInsert) {
        key = { element: this.#neighbour(key.element) }
      } else {
        const element = this.#nowOf(key.element)
        if (typeof element !== "string") return element.cause
        key = { element }
      }
    }
    const deletions = this.#deletions.get(placeOf(op.object, op.key)) ?? []
    const seen = deletions.filter(({ change }) => below(change)).flatMap(({ overwrote }) => overwrote)
    const overwrites = this.#overwritten([...op.overwrites, ...seen])
    // What is counted on must be the same counter, and what is deleted be there.
    const needed = op.action === Action.increment || (op.action === Action.delete && overwrites.length === 0) ? op.overwrites : []
    for (const id of needed) {
      const now = this.#nowOf(id)
      if (typeof now !== "string") return now.cause
    }
    return { ...op, object, key, overwrites }
  }

  #nowOf(id: OpId): OpId | { cause: string } {
    const fate = this.#fates.get(id)
    if (!fate) return id
    return "anew" in fate ? fate.anew : fate
  }

  /** The list element that one which follows `id` follows now. */
  #neighbour(id: OpId): OpId | typeof HEAD {
    for (;;) {
      const fate = this.#fates.get(id)
      if (!fate) return id
      if ("anew" in fate) return fate.anew
      if (fate.followed === undefined || fate.followed === HEAD) return HEAD
      id = fate.followed
    }
  }

  /** What one who overwrote `ids` overwrites now, in the order in which it is written. */
  #overwritten(ids: OpId[]): OpId[] {
    const found = new Set<OpId>()
    for (let id = ids.pop(); id !== undefined; id = ids.pop()) {
      const fate = this.#fates.get(id)
      if (!fate) found.add(id)
      else if ("anew" in fate) found.add(fate.anew)
      else ids.push(...fate.overwrote)
    }
    return [...found].sort((a, b) => counterOf(a) - counterOf(b) || (actorOf(a) < actorOf(b) ? -1 : 1))
  }
}
