// Who is here: the stock Presence of automerge-repo, so that its peers and ours see each other.

import { Presence } from "@automerge/automerge-repo/slim"
import type { DocHandle, PeerId, PeerState } from "@automerge/automerge-repo/slim"

/** What one peer says of itself beside a document, and what others do. */
export class DocumentPresence<S extends Record<string, unknown>> {
  /** The stock one. */
  readonly presence: Presence<S, unknown>
  readonly #told = new Set<() => void>()
  readonly #offClose: () => void
  #isOver = false

  /** @internal */
  constructor(handle: DocHandle<unknown>, initial: S, onClose: (ended: () => void) => () => void) {
    this.presence = new Presence<S, unknown>({ handle })
    const start = () => {
      if (this.#isOver || this.presence.running) return
      this.presence.start({ initialState: initial })
    }
    if (handle.isReady()) start()
    else handle.whenReady().then(start, () => {})
    const tell = () => {
      for (const told of [...this.#told]) told()
    }
    for (const event of ["update", "snapshot", "goodbye", "pruning"] as const) this.presence.on(event, tell)
    this.#offClose = onClose(() => this.stop())
  }

  /** Says something about this peer. */
  set<K extends keyof S>(key: K, value: S[K]): void {
    if (this.presence.running) this.presence.broadcast(key, value)
  }

  /** What this peer says. */
  get mine(): S {
    return this.presence.getLocalState()
  }

  /** The others, by their peer ids. */
  get others(): Record<PeerId, PeerState<S>> {
    return this.presence.getPeerStates().value
  }

  /** Tells whenever others said something or left. */
  onChange(told: () => void): () => void {
    this.#told.add(told)
    return () => void this.#told.delete(told)
  }

  /** Leaves; the others are told. */
  stop(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#told.clear()
    this.#offClose()
    if (this.presence.running) this.presence.stop()
  }
}
