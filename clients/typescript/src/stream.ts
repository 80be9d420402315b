// Server-sent events that go on over lost connections: each is asked for again from where the last one ended.

import type { Connection } from "./connection.js"
import { retryDelayAfter } from "./connection.js"
import { isTransient, TidelogError, unreachable } from "./error.js"

/** `open`: the server answers; `down`: it does not any more, and is asked again; else an event of its. */
export type Followed =
  | { kind: "open" }
  | { kind: "down"; error: TidelogError }
  | { kind: "event"; name: string; id: string | undefined; data: unknown }

/** The server says something every 15 s. */
const SILENCE_MS = 45_000

/**
 * Follows a stream of the server until `signal`. `path` is asked before each attempt, and says where to go on. What
 * cannot be followed at all is thrown.
 */
export async function* follow(connection: Connection, path: () => string, signal: AbortSignal): AsyncGenerator<Followed> {
  let attempt = 0
  while (!signal.aborted && !connection.isClosed) {
    await connection.whenUp(signal)
    if (signal.aborted || connection.isClosed) return
    const ending = new AbortController()
    let retryAfterMs: number | undefined
    const end = () => ending.abort()
    signal.addEventListener("abort", end)
    try {
      const headers = { accept: "text/event-stream" }
      const response = await connection.request(path(), { headers, signal: ending.signal, cache: "no-store" })
      yield { kind: "open" }
      for await (const event of events(response, ending)) {
        attempt = 0
        if (event.name === "error") throw told(event.data)
        yield event
      }
      yield { kind: "down", error: unreachable(connection.url, "the stream ended") }
    } catch (error) {
      if (signal.aborted || connection.isClosed) return
      const known = error instanceof TidelogError ? error : unreachable(connection.url, error)
      if (known.code !== "E0501" && !isTransient(known)) throw known
      retryAfterMs = known.retryAfterMs
      yield { kind: "down", error: known }
    } finally {
      signal.removeEventListener("abort", end)
      ending.abort()
    }
    await connection.pauseFor(retryDelayAfter(attempt, connection.retryMs, retryAfterMs), signal)
    attempt += 1
  }
}

/** What the server says before it ends a stream. */
function told(data: unknown): TidelogError {
  const outer = data as { error?: object } | null
  const { code, detail, fix } = (outer?.error ?? outer ?? {}) as { code?: string; detail?: string; fix?: string }
  return new TidelogError(code ?? "E0317", detail ?? "the stream failed", fix ?? "see docs/operations.md")
}

async function* events(response: Response, ending: AbortController): AsyncGenerator<Followed & { kind: "event" }> {
  const reader = response.body?.getReader()
  if (!reader) return
  const decoder = new TextDecoder()
  let buffer = ""
  let looked = 0
  try {
    for (;;) {
      const watch = setTimeout(() => ending.abort(), SILENCE_MS)
      const { value, done } = await reader.read().finally(() => clearTimeout(watch))
      if (done) return
      buffer += decoder.decode(value, { stream: true })
      for (let end; (end = buffer.indexOf("\n\n", looked)) >= 0; looked = 0) {
        const event = eventOf(buffer.slice(0, end))
        buffer = buffer.slice(end + 2)
        if (event) yield event
      }
      looked = Math.max(0, buffer.length - 1)
    }
  } finally {
    // The reader may have failed already, and that was told.
    reader.cancel().catch(() => {})
  }
}

function eventOf(text: string): (Followed & { kind: "event" }) | undefined {
  let name = "message"
  let id: string | undefined
  const data: string[] = []
  for (const line of text.split("\n")) {
    const at = line.indexOf(":")
    if (at <= 0) continue
    const value = line.slice(line[at + 1] === " " ? at + 2 : at + 1)
    const field = line.slice(0, at)
    if (field === "event") name = value
    else if (field === "id") id = value
    else if (field === "data") data.push(value)
  }
  return data.length === 0 ? undefined : { kind: "event", name, id, data: JSON.parse(data.join("\n")) }
}
