// The package in a real browser: a page with a listener, a network that is switched off, and an edit that is refused.

import assert from "node:assert/strict"
import { once } from "node:events"
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after, before, test } from "node:test"
import { build } from "esbuild"
import { chromium } from "playwright-core"
import type { Client } from "../src/index.js"
import { binary, Server, soon } from "./server.js"

const executablePath = process.env["TIDELOG_CHROMIUM"] ?? "/usr/bin/chromium"
const skip = binary === undefined ? "TIDELOG_BINARY names no binary" : existsSync(executablePath) ? false : "chromium absent"
const HTML = '<!doctype html><meta charset="utf-8"><title>Messages</title><ul></ul><output></output><script type="module" src="page.js"></script>'

const RULES = "match /messages/{id} { allow read, create: if true; allow update: if request.resource.data.at == resource.data.at; }"
const folder = mkdtempSync(join(tmpdir(), "tidelog-browser-"))
let server: Server
before(async () => {
  if (skip) return
  writeFileSync(join(folder, "rules"), RULES)
  server = await Server.start("--rules", join(folder, "rules"))
})
after(async () => {
  if (!skip) await server.close()
  rmSync(folder, { recursive: true, force: true })
})

test("a page shows what others add, edits without a network, and what it stored after a reload", { skip, timeout: 120_000 }, async () => {
  const entry = new URL("../../test/page.ts", import.meta.url).pathname
  const bundle = await build({ entryPoints: [entry], bundle: true, write: false, format: "esm", target: "es2022" })
  const script = bundle.outputFiles[0]!.text
  // The page is of another origin than the server, as with a development server.
  const pages = createServer((request, response) => {
    const isScript = request.url?.startsWith("/page.js")
    response.writeHead(200, { "content-type": isScript ? "text/javascript" : "text/html" }).end(isScript ? script : HTML)
  })
  await once(pages.listen(0, "127.0.0.1"), "listening")
  const address = `http://127.0.0.1:${(pages.address() as AddressInfo).port}/?${server.url}`
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] })
  try {
    const context = await browser.newContext()
    context.setDefaultTimeout(20_000)
    const page = await context.newPage()
    const complaints: string[] = []
    page.on("pageerror", error => complaints.push(String(error)))
    const says = (text: string) => page.getByText(text, { exact: true }).waitFor()
    const shown = () => page.locator("li").allTextContents()
    const add = (text: string, at: number) => page.evaluate(([text, at]) => (globalThis as unknown as { add: (text: string, at: number) => Promise<void> }).add(text, at), [text, at] as const)

    await page.goto(address)
    await says("0 live saved")
    await add("mine", 2)
    await says("1 live saved")
    const other = server.client()
    const theirs = other.collection<{ text: string; at: number }>("messages")
    await theirs.add({ text: "theirs", at: 1 })
    await says("2 live saved")
    assert.deepEqual(await shown(), ["theirs", "mine"])

    await context.setOffline(true)
    await says("2 cached saved")
    await add("offline", 3)
    await says("3 cached pending")
    await theirs.add({ text: "meanwhile", at: 0 })
    await soon(other.whenSynced(), "the other's is on the server")
    assert.deepEqual(await shown(), ["theirs", "mine", "offline"])
    await context.setOffline(false)
    await says("4 live saved")
    assert.deepEqual(await shown(), ["meanwhile", "theirs", "mine", "offline"])
    assert.deepEqual((await theirs.orderBy("at").get()).docs.map(doc => doc.data().text), await shown())

    // What it stored answers when the server is away.
    await server.kill()
    await says("4 cached saved")
    await page.reload()
    await says("4 cached saved")
    assert.deepEqual(await shown(), ["meanwhile", "theirs", "mine", "offline"])
    await server.start()
    await says("4 live saved")

    // An edit that may not be is taken back, and kept over a reload.
    type Page = { client: Client }
    const isKept = () => page.waitForFunction(() => {
      const [edit] = (globalThis as unknown as Page).client.rejected
      return edit?.kind === "change" && edit.reason.code === "E0203" && edit.patches.some(({ path }) => path[0] === "at")
    })
    await page.waitForFunction(() => (globalThis as unknown as Page).client.status === "connected")
    await page.evaluate(async () => {
      const { docs } = await (globalThis as unknown as Page).client.collection<{ at: number }>("messages").orderBy("at").get()
      await docs[0]!.ref.change(doc => void (doc.at = 9))
    })
    await isKept()
    await says("4 live saved")
    assert.deepEqual(await shown(), ["meanwhile", "theirs", "mine", "offline"])
    await page.reload()
    await isKept()
    await says("4 live saved")
    assert.deepEqual(await shown(), ["meanwhile", "theirs", "mine", "offline"])
    assert.deepEqual(complaints, [])
  } finally {
    await browser.close()
    pages.close()
  }
})
