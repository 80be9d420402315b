// What the application gave to be called.

/** Calls all of them. What one throws is the application's own, and is told as that: it stops nothing here. */
export function tellAll<T>(all: Iterable<(item: T) => void>, item: T): void {
  for (const told of [...all]) {
    try {
      told(item)
    } catch (error) {
      queueMicrotask(() => {
        throw error
      })
    }
  }
}
