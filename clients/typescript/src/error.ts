/** What goes wrong, from the server or here: a code that never changes, a text, and what to do about it. */
export class TidelogError extends Error {
  override readonly name = "TidelogError"

  constructor(
    /** As in docs/operations.md: `E0623` is a query that is not understood, wherever that was noticed. */
    readonly code: string,
    message: string,
    /** What to do. */
    readonly fix: string,
    /** The status of the server's answer, if it was one. */
    readonly status?: number,
    /** After how many ms the server wants to be asked again, if it said so. */
    readonly retryAfterMs?: number,
  ) {
    super(message)
  }
}

/** A query that cannot be understood, or asks for more than a query may. */
export function malformed(why: string, fix: string): TidelogError {
  return new TidelogError("E0623", why, fix)
}

/** The client was closed. */
export function closed(): TidelogError {
  return new TidelogError("E0406", "the client is closed", "make a new one")
}

/** The server does not answer. */
export function unreachable(url: string, why: unknown): TidelogError {
  return new TidelogError("E0501", `${url} does not answer: ${reason(why)}`, "check that the server runs and the address is right")
}

/** The application's storage does not give or take something. */
export function storageFault(why: unknown): TidelogError {
  return new TidelogError("E0402", `the storage fails: ${reason(why)}`, "look at the storage; what it does not take stays here until the client is closed")
}

/** An answer that is no success, as the error it tells of (RFC 9457). */
export async function problem(response: Response): Promise<TidelogError> {
  const text = await response.text().catch(() => "")
  let told: { code?: unknown; detail?: unknown; fix?: unknown; retry_after_ms?: unknown } = {}
  try {
    told = JSON.parse(text) ?? {}
  } catch {
    // Something between here and the server answered.
  }
  const said = (value: unknown, otherwise: string) => (typeof value === "string" ? value : otherwise)
  const detail = said(told.detail, `the server answered ${response.status} ${response.statusText}`.trim())
  // What stands between here and the server says it in a header, if at all.
  const seconds = Number(response.headers.get("retry-after") ?? NaN)
  const retryMs = typeof told.retry_after_ms === "number" ? told.retry_after_ms : Number.isFinite(seconds) ? seconds * 1000 : undefined
  return new TidelogError(said(told.code, "E0311"), detail, said(told.fix, "see docs/operations.md"), response.status, retryMs)
}

/** Whether asking the same again later may be answered. */
export function isTransient(error: TidelogError): boolean {
  const status = error.status
  return error.code === "E0624" || error.code === "E0627" || (status !== undefined && (status >= 500 || status === 408 || status === 429))
}

/** After how many ms a closed socket may be opened again, as the server says in its last words. */
export function retryAfterOf(reason: string | undefined): number | undefined {
  const found = /retry after (\d{1,9}) ms$/.exec(reason ?? "")
  return found ? Number(found[1]) : undefined
}

/** What somebody threw, in words. */
export function reason(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const { cause } = error
  return cause instanceof Error ? `${error.message} (${cause.message})` : error.message
}
