// The demo page in a real browser: node demo.mjs <chromium> <http address>

import { chromium } from "playwright-core"
import { ask, check, run, same, say } from "./harness.mjs"

const [executablePath, address] = process.argv.slice(2)
const SENTENCE = "The tide comes twice a day."

/** What the pages complained of, but for a server that is away. */
const complaints = []

/** A window with storage of its own, as another person's browser has. */
async function open(browser, url, more = {}, prepare = async () => {}) {
  const context = await browser.newContext(more)
  context.setDefaultTimeout(20_000)
  const page = await context.newPage()
  page.on("pageerror", error => complaints.push(`${error}`))
  page.on("console", message => {
    if (message.type() === "error" && !message.text().includes("WebSocket connection")) complaints.push(message.text())
  })
  await prepare(page)
  await page.goto(url)
  return page
}

/** A pane, by what a person or a screen reader finds in it. */
function pane(page, name) {
  const region = page.getByRole("region", { name })
  return {
    note: region.getByLabel("Note"),
    online: region.getByRole("switch", { name: "Online" }),
    item: region.getByLabel("New item"),
    add: region.getByRole("button", { name: "Add" }),
    todo: title => region.getByRole("checkbox", { name: title }),
    done: title => region.getByRole("checkbox", { name: title, checked: true }).waitFor(),
    remove: title => region.getByRole("button", { name: `Remove ${title}` }),
    says: text => region.getByText(text, { exact: true }).waitFor(),
    shows: test => until(region.getByLabel("Note"), test),
  }
}

/** Waits until a field has a value that passes a test. It is asked in the page, at each frame. */
async function until(field, [test, argument]) {
  const element = await field.elementHandle()
  // The page may make no functions from text, so the tests are a few with names.
  await field.page().waitForFunction(
    ([element, test, argument]) =>
      test === "is" ? element.value === argument : argument.every(part => element.value.includes(part)),
    [element, test, argument],
  )
  return field.inputValue()
}

const is = text => ["is", text]
const holds = (...parts) => ["holds", parts]

await run("demo", async () => {
  const browser = await chromium.launch({ executablePath })
  const first = await open(browser, `http://${address}/demo`)
  const [left, right] = [pane(first, "Left"), pane(first, "Right")]
  await left.says("Connected")
  await left.says("Saved on the server")
  const url = first.url()
  check(url.startsWith(`http://${address}/demo/#automerge:`), `the address names the document: ${url}`)
  const second = await open(browser, url, { viewport: { width: 360, height: 740 } })
  const [far, away] = [pane(second, "Left"), pane(second, "Right")]
  const all = [left, right, far, away]

  await left.note.fill(SENTENCE)
  for (const each of all) await each.shows(is(SENTENCE))
  await away.item.fill("Look at the tables")
  await away.item.press("Enter")
  await right.todo("Look at the tables").check()
  await right.item.fill("Buy boots")
  await right.add.click()
  await far.remove("Buy boots").click()
  for (const each of all) {
    await each.done("Look at the tables")
    await each.todo("Buy boots").waitFor({ state: "detached" })
  }
  say({ saw: "edits on both sides" })
  const overflow = await second.evaluate(() => document.documentElement.scrollWidth - window.innerWidth)
  check(overflow <= 0, `in a window as narrow as a telephone ${overflow} pixels stick out`)

  // The same sentence in two places while neither hears the other.
  for (const each of [left, away]) {
    await each.online.uncheck()
    await each.says("Offline")
  }
  await left.note.fill(SENTENCE.replace("twice", "in and goes out twice"))
  await away.note.fill(SENTENCE.replace("a day.", "a day, and the moon knows why."))
  await left.says("1 change waits for the server")
  await right.shows(is(SENTENCE))
  await left.online.check()
  await away.online.check()
  const merged = "The tide comes in and goes out twice a day, and the moon knows why."
  for (const each of all) {
    await each.shows(is(merged))
    await each.says("Saved on the server")
  }
  say({ saw: "edits of one sentence merge" })

  await Promise.all([first, second].map(page => page.reload()))
  for (const each of all) await each.shows(is(merged))
  say({ saw: "a reload changes nothing" })

  same((await ask("kill the server")).done, true, "the server is killed")
  for (const each of all) await each.says("Connecting…")
  await far.note.fill(`${merged} Always.`)
  await far.says("1 change waits for the server")
  same((await ask("start the server")).done, true, "the server is started")
  for (const each of all) {
    await each.says("Connected")
    await each.shows(is(`${merged} Always.`))
    await each.says("Saved on the server")
  }
  const third = await open(browser, url)
  for (const name of ["Left", "Right"]) await pane(third, name).shows(holds(merged, "Always."))
  say({ saw: "a killed server has it all" })

  // A document whose author is not heard yet: it appears to whoever waits for it.
  let isHeard = false
  const silence = page =>
    page.routeWebSocket(/\/sync$/, socket => (isHeard ? void socket.connectToServer() : socket.close()))
  const author = await open(browser, `http://${address}/demo/`, {}, silence)
  await pane(author, "Left").note.fill(SENTENCE)
  const waiting = await open(browser, author.url())
  for (const name of ["Left", "Right"]) await pane(waiting, name).says("Not found yet")
  isHeard = true
  for (const name of ["Left", "Right"]) await pane(waiting, name).shows(is(SENTENCE))
  say({ saw: "a document appears to who waits for it" })
  const licences = await author.request.get(`http://${address}/demo/licenses.txt`)
  check((await licences.text()).includes("@automerge/automerge-repo 2.5.6"), "the page says whose packages it is made of")
  same(complaints, [], "what the pages complained of")
  await browser.close()
})
