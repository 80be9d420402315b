// The way to the server: whether it is open, when it is tried again, and requests over it.

import { closed, problem, TidelogError, unreachable } from "./error.js"
import { tellAll } from "./told.js"

/** How things stand with the server. `denied`: it said no, and why is in `client.lastError`; it is asked again now and then. */
export type Status = "connecting" | "connected" | "offline" | "denied"

/** How long before its end a token is asked for anew. */
const RENEW_BEFORE_MS = 30_000
/** No more often than that. */
const RENEW_AT_LEAST_MS = 5_000

/** When a JSON Web Token ends, in milliseconds from now; nothing when it does not say. */
export function expiresIn(token: string | undefined, now: number): number | undefined {
  const payload = token?.split(".")[1]
  if (payload === undefined) return undefined
  try {
    const { exp } = JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/"))) as { exp?: unknown }
    return typeof exp === "number" ? exp * 1000 - now : undefined
  } catch {
    return undefined
  }
}

/** A token, or what gets one. */
export type Token = string | (() => string | Promise<string>)

const RETRY_MAX_MS = 10_000
/** No server is believed that wants to be asked later than in an hour. */
const RETRY_AFTER_MAX_MS = 3_600_000

/** How long to wait before the next attempt, half of it by chance, so that not all clients come at once. */
export function retryDelay(attempt: number, firstMs: number): number {
  const full = Math.min(RETRY_MAX_MS, firstMs * 2 ** Math.min(attempt, 20))
  return full / 2 + Math.random() * (full / 2)
}

/** The same, but not before the server wants to be asked again, and not all at once then. */
export function retryDelayAfter(attempt: number, firstMs: number, retryAfterMs: number | undefined): number {
  const delay = retryDelay(attempt, firstMs)
  return retryAfterMs === undefined ? delay : Math.max(delay, Math.min(retryAfterMs, RETRY_AFTER_MAX_MS) + Math.random() * firstMs)
}

export class Connection {
  readonly url: string
  /** What went wrong last. */
  lastError: TidelogError | undefined
  #status: Status = "connecting"
  readonly #told = new Set<(status: Status) => void>()
  readonly #enders = new Set<() => void>()
  readonly #closed = new AbortController()
  #cut = new AbortController()
  #isPaused = false
  #isAway = false
  readonly #wakers = new Set<() => void>()
  readonly #forget: () => void

  constructor(url: string, readonly token: Token | undefined, readonly retryMs: number) {
    this.url = addressOf(url)
    const scope = globalThis as { addEventListener?: typeof addEventListener; removeEventListener?: typeof removeEventListener }
    const away = () => this.#become(this.#isPaused, true)
    const back = () => this.#become(this.#isPaused, false)
    scope.addEventListener?.("offline", away)
    scope.addEventListener?.("online", back)
    this.#forget = () => {
      scope.removeEventListener?.("offline", away)
      scope.removeEventListener?.("online", back)
    }
    this.#isAway = (globalThis as { navigator?: { onLine?: boolean } }).navigator?.onLine === false
    if (this.#isAway) this.#status = "offline"
  }

  get status(): Status {
    return this.#status
  }

  set status(status: Status) {
    if (this.#status === status || this.isClosed) return
    this.#status = status
    tellAll(this.#told, status)
  }

  onStatus(told: (status: Status) => void): () => void {
    this.#told.add(told)
    return () => void this.#told.delete(told)
  }

  /** Whether anything may be sent. */
  get isUp(): boolean {
    return !this.#isPaused && !this.#isAway && !this.isClosed
  }

  get isClosed(): boolean {
    return this.#closed.signal.aborted
  }

  /** Calls once the client is closed. The returned function takes that back. */
  onClose(ended: () => void): () => void {
    this.#enders.add(ended)
    return () => void this.#enders.delete(ended)
  }

  /** As if there were no network, until it is called with false. */
  pause(isPaused: boolean): void {
    this.#become(isPaused, this.#isAway)
  }

  #become(isPaused: boolean, isAway: boolean): void {
    const wasUp = this.isUp
    this.#isPaused = isPaused
    this.#isAway = isAway
    if (wasUp && !this.isUp) {
      this.#cut.abort()
      this.status = "offline"
      this.wake()
    } else if (!wasUp && this.isUp) {
      this.#cut = new AbortController()
      this.status = "connecting"
      this.wake()
    }
  }

  close(): void {
    this.status = "offline"
    this.#closed.abort()
    this.#cut.abort()
    this.#forget()
    clearTimeout(this.#expiring)
    this.wake()
    this.#told.clear()
    tellAll(this.#enders, undefined)
    this.#enders.clear()
  }

  /** Lets all that wait for their next attempt try now. */
  wake(): void {
    for (const waker of [...this.#wakers]) waker()
  }

  /** Waits so long, or until something happened that makes an attempt worth while. */
  async pauseFor(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted || this.isClosed) return
    await new Promise<void>(done => {
      const end = () => {
        clearTimeout(timer)
        this.#wakers.delete(end)
        signal?.removeEventListener("abort", end)
        done()
      }
      // While there is no network only its coming back ends the wait.
      const timer = setTimeout(() => (this.isUp ? end() : undefined), ms)
      this.#wakers.add(end)
      signal?.addEventListener("abort", end)
    })
  }

  async whenUp(signal?: AbortSignal): Promise<void> {
    while (!this.isUp && !this.isClosed && !signal?.aborted) await this.pauseFor(0x7fff_ffff, signal)
  }

  /** Called when the token that was given last will end soon, and another can be had. */
  onExpiring: (() => void) | undefined
  #expiring: ReturnType<typeof setTimeout> | undefined

  /** What the application gives for a token. It may never give any: it is not waited for after `signal` or the end. */
  async currentToken(signal = this.#closed.signal): Promise<string | undefined> {
    const ask = this.token
    if (typeof ask !== "function") return ask
    const token = await before(signal, (async () => await ask())()).catch((error: unknown) => {
      throw this.isClosed ? closed() : error
    })
    if (this.isClosed) throw closed()
    clearTimeout(this.#expiring)
    const ms = expiresIn(token, Date.now())
    if (ms !== undefined && !this.isClosed) {
      const early = Math.max(ms - RENEW_BEFORE_MS, RENEW_AT_LEAST_MS)
      this.#expiring = setTimeout(() => this.onExpiring?.(), Math.min(early, 0x7fff_ffff))
      // In node it keeps no process alive.
      ;(this.#expiring as { unref?: () => void }).unref?.()
    }
    return token
  }

  /** The address of the sync socket. */
  async syncUrl(): Promise<string> {
    const url = new URL(`${this.url}/sync`)
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:"
    const token = await this.currentToken(AbortSignal.any([this.#cut.signal, this.#closed.signal]))
    if (token !== undefined) url.searchParams.set("access_token", token)
    return url.href
  }

  /** Asks the server. What is no success is thrown as what it tells of. */
  async request(path: string, init: RequestInit & { signal?: AbortSignal } = {}): Promise<Response> {
    if (this.isClosed) throw closed()
    if (!this.isUp) throw unreachable(this.url, "the network is off")
    const signals = [this.#cut.signal, this.#closed.signal, ...(init.signal ? [init.signal] : [])]
    let response: Response
    try {
      const signal = AbortSignal.any(signals)
      const token = await this.currentToken(signal)
      const headers = new Headers(init.headers)
      if (token !== undefined) headers.set("authorization", `Bearer ${token}`)
      response = await fetch(`${this.url}${path}`, { ...init, headers, signal })
    } catch (error) {
      throw this.isClosed ? closed() : unreachable(this.url, error)
    }
    if (response.ok) return response
    throw await problem(response)
  }
}

/** What comes before a signal. */
async function before<T>(signal: AbortSignal, coming: Promise<T>): Promise<T> {
  let stop = () => {}
  const over = new Promise<never>((_, failed) => {
    stop = () => failed(new Error("it was not waited for any longer"))
    if (signal.aborted) stop()
    else signal.addEventListener("abort", stop)
  })
  return await Promise.race([coming, over]).finally(() => signal.removeEventListener("abort", stop))
}

/** The server's address, without what is the socket's alone. */
function addressOf(text: string): string {
  let url: URL
  try {
    url = new URL(text)
  } catch {
    throw new TidelogError("E0311", `${JSON.stringify(String(text).slice(0, 128))} is no address`, "write it as http://127.0.0.1:4780")
  }
  const protocol = { "ws:": "http:", "wss:": "https:", "http:": "http:", "https:": "https:" }[url.protocol]
  if (protocol === undefined) throw new TidelogError("E0311", `${url.protocol} is no way to a server`, "use http or https")
  const path = url.pathname.replace(/\/(sync\/?)?$/, "")
  return `${protocol}//${url.host}${path}`
}
