// The package in a real browser: a page with a listener, and a network that is switched off.

import assert from "node:assert/strict"
import { once } from "node:events"
import { existsSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { after, before, test } from "node:test"
import { build } from "esbuild"
import { chromium } from "playwright-core"
import { binary, Server, soon } from "./server.js"

const executablePath = process.env["TIDELOG_CHROMIUM"] ?? "/usr/bin/chromium"
const skip = binary === undefined ? "TIDELOG_BINARY names no binary" : existsSync(executablePath) ? false : "chromium absent"
const HTML = '<!doctype html><meta charset="utf-8"><title>Messages</title><ul></ul><output></output><script type="module" src="page.js"></script>'

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
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
    assert.deepEqual(complaints, [])
  } finally {
    await browser.close()
    pages.close()
  }
})
