// The columns of Automerge's binary format (https://automerge.org/automerge-binary-format-spec): read from the bytes of a
// change, and written in the one form in which Automerge itself writes them.

/** What cannot be read: a form of later days, or no change at all. */
export class FormatError extends Error {}

const MAX = Number.MAX_SAFE_INTEGER
const texts = new TextDecoder("utf-8", { fatal: true })

export class Source {
  #at = 0

  constructor(readonly bytes: Uint8Array) {}

  get isAtEnd(): boolean {
    return this.#at >= this.bytes.length
  }

  take(length: number): Uint8Array {
    if (length > this.bytes.length - this.#at) throw new FormatError("it ends too early")
    this.#at += length
    return this.bytes.subarray(this.#at - length, this.#at)
  }

  rest(): Uint8Array {
    return this.take(this.bytes.length - this.#at)
  }

  /** A number in LEB128. Beyond what a JavaScript number holds nothing is read. */
  unsigned(): number {
    let [value, unit] = [0, 1]
    for (;;) {
      const byte = this.take(1)[0]!
      value += (byte & 0x7f) * unit
      if (value > MAX) throw new FormatError("a number is too large")
      if (byte < 0x80) return value
      unit *= 128
    }
  }

  signed(): number {
    let [value, unit] = [0, 1]
    for (;;) {
      const byte = this.take(1)[0]!
      value += (byte & 0x7f) * unit
      unit *= 128
      if (unit > MAX * 128) throw new FormatError("a number is too large")
      if (byte < 0x80) return this.#exact(byte & 0x40 ? value - unit : value)
    }
  }

  bytesWithLength(): Uint8Array {
    return this.take(this.unsigned())
  }

  text(): string {
    return texts.decode(this.bytesWithLength())
  }

  #exact(value: number): number {
    if (!Number.isSafeInteger(value)) throw new FormatError("a number is too large")
    return value
  }
}

export class Sink {
  #bytes = new Uint8Array(256)
  #length = 0

  get written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }

  put(bytes: Uint8Array): void {
    if (this.#length + bytes.length > this.#bytes.length) {
      const larger = new Uint8Array(2 * (this.#length + bytes.length))
      larger.set(this.written)
      this.#bytes = larger
    }
    this.#bytes.set(bytes, this.#length)
    this.#length += bytes.length
  }

  unsigned(value: number): void {
    const bytes: number[] = []
    for (; value >= 0x80; value = Math.floor(value / 128)) bytes.push((value % 128) | 0x80)
    this.put(Uint8Array.from([...bytes, value]))
  }

  signed(value: number): void {
    const bytes: number[] = []
    for (;;) {
      const low = ((value % 128) + 128) % 128
      value = Math.floor(value / 128)
      const isLast = (value === 0 && low < 0x40) || (value === -1 && low >= 0x40)
      bytes.push(isLast ? low : low | 0x80)
      if (isLast) return this.put(Uint8Array.from(bytes))
    }
  }

  bytesWithLength(bytes: Uint8Array): void {
    this.unsigned(bytes.length)
    this.put(bytes)
  }

  text(text: string): void {
    this.bytesWithLength(new TextEncoder().encode(text))
  }
}

/** How the values of a column are written. */
interface Form<T> {
  read(source: Source): T
  write(sink: Sink, value: T): void
}

export const UNSIGNED: Form<number> = { read: source => source.unsigned(), write: (sink, value) => sink.unsigned(value) }
export const SIGNED: Form<number> = { read: source => source.signed(), write: (sink, value) => sink.signed(value) }
export const TEXT: Form<string> = { read: source => source.text(), write: (sink, value) => sink.text(value) }

/** The first `count` values of a column of runs; null is no value, and so is what a column that ends lacks. */
export function readRuns<T>(bytes: Uint8Array | undefined, form: Form<T>, count: number): (T | null)[] {
  const all: (T | null)[] = []
  const source = new Source(bytes ?? new Uint8Array())
  const take = (length: number, next: () => T | null) => {
    if (length > count - all.length) throw new FormatError("a column is longer than another")
    for (let at = 0; at < length; at += 1) all.push(next())
  }
  while (!source.isAtEnd) {
    const length = source.signed()
    if (length === 0) {
      take(source.unsigned(), () => null)
    } else if (length < 0) {
      take(-length, () => form.read(source))
    } else {
      const value = form.read(source)
      take(length, () => value)
    }
  }
  while (all.length < count) all.push(null)
  return all
}

/** A column of runs; nothing at all when it has no value. */
export function writeRuns<T>(values: readonly (T | null)[], form: Form<T>): Uint8Array {
  const sink = new Sink()
  if (values.every(value => value === null)) return sink.written
  let lone: T[] = []
  const writeLone = () => {
    if (lone.length > 0) sink.signed(-lone.length)
    for (const value of lone) form.write(sink, value)
    lone = []
  }
  for (let at = 0; at < values.length; ) {
    const value = values[at]!
    let end = at + 1
    while (end < values.length && values[end] === value) end += 1
    if (value === null) {
      writeLone()
      sink.signed(0)
      sink.unsigned(end - at)
    } else if (end - at > 1) {
      writeLone()
      sink.signed(end - at)
      form.write(sink, value)
    } else {
      lone.push(value)
    }
    at = end
  }
  writeLone()
  return sink.written
}

/** A column of numbers of which each is written as what it has more than the one before. */
export function readDeltas(bytes: Uint8Array | undefined, count: number): (number | null)[] {
  let before = 0
  return readRuns(bytes, SIGNED, count).map(delta => (delta === null ? null : (before += delta)))
}

export function writeDeltas(values: readonly (number | null)[]): Uint8Array {
  let before = 0
  return writeRuns(values.map(value => {
    if (value === null) return null
    const delta = value - before
    before = value
    return delta
  }), SIGNED)
}

/** A column of yes and no: how many of each in turn, `no` first. */
export function readFlags(bytes: Uint8Array | undefined, count: number): boolean[] {
  const all: boolean[] = []
  const source = new Source(bytes ?? new Uint8Array())
  for (let flag = false; !source.isAtEnd; flag = !flag) {
    const length = source.unsigned()
    if (length > count - all.length) throw new FormatError("a column is longer than another")
    for (let at = 0; at < length; at += 1) all.push(flag)
  }
  while (all.length < count) all.push(false)
  return all
}

export function writeFlags(flags: readonly boolean[]): Uint8Array {
  const sink = new Sink()
  let [flag, length] = [false, 0]
  for (const next of flags) {
    if (next !== flag) {
      sink.unsigned(length)
      length = 0
      flag = next
    }
    length += 1
  }
  if (length > 0) sink.unsigned(length)
  return sink.written
}
