// The change feed: what happened to documents, in order and without gaps (docs/feed.md).

import type { Client } from "./client.js"
import { follow } from "./stream.js"

export interface FeedOptions {
  /** A cursor, as events have it; or `"beginning"`, which is the default, or `"now"`. */
  from?: string
  /** Where the cursor is long ago, tell each document once as it stands instead of all that happened to it. */
  coalesced?: boolean
  signal?: AbortSignal
}

interface EventBase {
  /** Goes on behind this event, with `changes({ from: cursor })`. */
  cursor: string
  position: number
  digest: string
  id: string
  collection: string
  received_ms: number
}

/** Something that happened. */
export type FeedEvent =
  | (EventBase & { kind: "created" | "deleted" | "restored" | "purged" | "moved"; name?: string; from?: string })
  | (EventBase & {
      kind: "changed"
      change: string
      actor: string
      seq: number
      ops: number
      heads: string[]
      heads_before: string[]
      time: number
      message?: string
    })
  /**
   * May be read by now: read it anew, whatever you have of it. Without a position it may not be read once more already,
   * and a `withheld` follows: keep in mind to ask for it until then.
   */
  | { kind: "released"; cursor: string; position?: number; id: string; collection: string; name?: string; heads?: string[] }
  /** May not be read any more: drop it. */
  | { kind: "withheld"; cursor: string; id: string; collection: string }
  | (EventBase & { kind: "withdrawn" | "void" | "standing" | "gone"; [more: string]: unknown })
  /** Forget what you have: documents are told as they stand, then what happens. */
  | { kind: "reset"; reason: string; cursor: string }
  /** Asked for with `coalesced`: documents are told as they stand, then what happens. */
  | { kind: "rebased"; cursor: string }

interface Opened {
  reset?: { reason: string; to: string }
  rebased?: { to: string }
}

/** Reads the feed until the loop over it ends. After a lost connection it goes on behind the last event by itself. */
export async function* readFeed(client: Client, collection: string | undefined, options: FeedOptions): AsyncGenerator<FeedEvent, void, undefined> {
  client.assertOpen()
  const ending = new AbortController()
  const end = () => ending.abort()
  options.signal?.addEventListener("abort", end)
  if (options.signal?.aborted) end()
  let cursor = options.from
  const path = () => {
    const asked = new URLSearchParams({ feed: "sse" })
    if (cursor !== undefined) asked.set("since", cursor)
    if (collection !== undefined) asked.set("collection", collection)
    if (options.coalesced) asked.set("coalesced", "true")
    return `/v1/changes?${asked}`
  }
  try {
    for await (const item of follow(client.connection, path, ending.signal)) {
      if (item.kind !== "event") continue
      if (item.name === "opened") {
        const { reset, rebased } = item.data as Opened
        if (reset) yield { kind: "reset", reason: reset.reason, cursor: reset.to }
        if (rebased) yield { kind: "rebased", cursor: rebased.to }
      } else if (item.name === "change") {
        yield item.data as FeedEvent
      }
      // Only when it was taken; what was not is told again.
      cursor = item.id ?? cursor
    }
  } finally {
    options.signal?.removeEventListener("abort", end)
    end()
  }
}
