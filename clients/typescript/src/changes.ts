// From one result to the next, one step after the other.

/** A document in a result, as far as steps are concerned. */
export interface Ranked<P> {
  readonly id: string
  readonly heads: string
  readonly isPending: boolean
  readonly place: P
}

/** One step from a result to the next. Applied in their order to the list before, steps make the list now. */
export interface Step<R> {
  readonly type: "added" | "modified" | "removed"
  readonly doc: R
  /** Where it was when all steps before are taken; -1 when it was added. */
  readonly oldIndex: number
  /** Where it is when this step is taken; -1 when it was removed. */
  readonly newIndex: number
}

/**
 * The steps from `before` to `now`, both in the order of `compare`: what was removed, then what was added or modified
 * in the order of the result now. A document is modified when its heads are others or its place is; with `withMetadata`
 * also when it is on its way to the server now, or is not any more.
 */
export function stepsBetween<P, R extends Ranked<P>>(
  before: readonly R[],
  now: readonly R[],
  compare: (a: P, b: P) => number,
  withMetadata: boolean,
): Step<R>[] {
  const steps: Step<R>[] = []
  const list = [...before]
  const indexOf = (place: P) => {
    let [low, high] = [0, list.length]
    while (low < high) {
      const middle = (low + high) >>> 1
      const at = list[middle]
      if (at !== undefined && compare(at.place, place) < 0) low = middle + 1
      else high = middle
    }
    return low
  }
  const old = new Map(before.map(each => [each.id, each]))
  const kept = new Set(now.map(({ id }) => id))
  for (const doc of before) {
    if (kept.has(doc.id)) continue
    const oldIndex = indexOf(doc.place)
    list.splice(oldIndex, 1)
    steps.push({ type: "removed", doc, oldIndex, newIndex: -1 })
  }
  for (const doc of now) {
    const was = old.get(doc.id)
    let oldIndex = -1
    if (was) {
      const isSame = was.heads === doc.heads && compare(was.place, doc.place) === 0
      if (isSame && !(withMetadata && was.isPending !== doc.isPending)) continue
      oldIndex = indexOf(was.place)
      list.splice(oldIndex, 1)
    }
    const newIndex = indexOf(doc.place)
    list.splice(newIndex, 0, doc)
    steps.push({ type: was ? "modified" : "added", doc, oldIndex, newIndex })
  }
  return steps
}
