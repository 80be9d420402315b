// How a script talks with the test that started it: a line of JSON for each thing that it says and is told. The last
// line that a script which passed says is {"passed": name}; whatever else happens, it fails.

import { createInterface } from "node:readline"

const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

/** Says one thing to the test. */
export function say(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`)
}

/** Asks the test for something, and returns what it answers. */
export async function ask(question) {
  say({ ask: question })
  const { value, done } = await told.next()
  if (done) throw new Error("the test has gone away")
  return JSON.parse(value)
}

export function check(holds, what) {
  if (!holds) throw new Error(`not so: ${what}`)
}

export function same(left, right, what) {
  const [one, other] = [left, right].map(value => JSON.stringify(value, sorted))
  if (one !== other) throw new Error(`${what}: ${one} is not ${other}`)
}

/** The order of keys says nothing. */
function sorted(_key, value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Waits for something that must happen, and says what it was if it does not. */
export async function soon(promise, what, seconds = 20) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${seconds} s for: ${what}`)), seconds * 1000)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Runs a scenario to its end and ends the process, whatever timers the clients have left. */
export async function run(name, scenario) {
  process.on("uncaughtException", error => fail(name, error))
  process.on("unhandledRejection", error => fail(name, error))
  try {
    await scenario()
  } catch (error) {
    return fail(name, error)
  }
  process.stdout.write(`${JSON.stringify({ passed: name })}\n`, () => process.exit(0))
}

function fail(name, error) {
  process.stdout.write(`${JSON.stringify({ failed: name, why: `${error?.stack ?? error}` })}\n`, () => process.exit(1))
}
