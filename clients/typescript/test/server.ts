// A real server of its own for each file of tests: started, killed and started again by them.

import { execFile, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { promisify } from "node:util"
import { tidelog, type Client, type ClientOptions } from "../src/index.js"

/** Where the binary is; the tests that need a server are skipped when it is not said. */
export const binary = process.env["TIDELOG_BINARY"]
export const skip = binary === undefined ? "TIDELOG_BINARY names no binary" : false

export class Server {
  readonly folder = mkdtempSync(join(tmpdir(), "tidelog-ts-"))
  address = "127.0.0.1:0"
  #process: ChildProcess | undefined
  readonly #clients: Client[] = []
  readonly #end = () => void this.#process?.kill("SIGKILL")

  /** What is said to `serve` beside the rest. */
  words: string[] = []

  static async start(...words: string[]): Promise<Server> {
    const server = new Server()
    server.words = words
    process.on("exit", server.#end)
    await server.start()
    return server
  }

  get url(): string {
    return `http://${this.address}`
  }

  async start(): Promise<void> {
    if (binary === undefined) throw new Error(String(skip))
    const words = ["--data", join(this.folder, "data"), "serve", "--listen", "127.0.0.1:0", "--http", this.address, "--json", ...this.words]
    const child = spawn(binary, words, { stdio: ["ignore", "pipe", "ignore"] })
    this.#process = child
    const lines = createInterface({ input: child.stdout })
    const [line] = (await once(lines, "line")) as [string]
    this.address = (JSON.parse(line) as { http: string }).http
    lines.close()
    child.stdout.resume()
  }

  /** Runs a command of the binary's beside the server. */
  async run(...words: string[]): Promise<string> {
    const { stdout } = await promisify(execFile)(binary ?? "", ["--data", join(this.folder, "data"), ...words], { timeout: 30_000 })
    return stdout.trim()
  }

  async kill(): Promise<void> {
    const child = this.#process
    if (!child) return
    this.#process = undefined
    const gone = once(child, "exit")
    child.kill("SIGKILL")
    await gone
  }

  client(options: Partial<ClientOptions> = {}): Client {
    const client = tidelog({ url: this.url, retryMs: 100, ...options })
    this.#clients.push(client)
    return client
  }

  async close(): Promise<void> {
    await Promise.all(this.#clients.map(client => client.close()))
    await this.kill()
    process.off("exit", this.#end)
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Waits until a test holds; it is asked whenever `changed` was called. */
export class Watch<S> {
  readonly all: S[] = []
  readonly #waiting = new Set<() => void>()

  readonly take = (item: S): void => {
    this.all.push(item)
    for (const look of [...this.#waiting]) look()
  }

  get last(): S | undefined {
    return this.all.at(-1)
  }

  /** The first of all that passes. */
  async until(test: (item: S) => boolean, what: string, seconds = 20): Promise<S> {
    return await new Promise<S>((done, failed) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(look)
        failed(new Error(`waited ${seconds} s for: ${what}`))
      }, seconds * 1000)
      const look = () => {
        const found = this.all.findLast(test)
        if (found === undefined) return
        clearTimeout(timer)
        this.#waiting.delete(look)
        done(found)
      }
      this.#waiting.add(look)
      look()
    })
  }
}

/** Waits for something that must happen, and says what it was if it does not. */
export async function soon<T>(promise: Promise<T>, what: string, seconds = 20): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, failed) => {
    timer = setTimeout(() => failed(new Error(`waited ${seconds} s for: ${what}`)), seconds * 1000)
  })
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Numbers by chance, the same for the same seed. */
export function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0
  return below => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}
