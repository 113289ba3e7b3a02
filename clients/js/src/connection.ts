/** One caller's line to the service: what passes is waited out, what does not is thrown. It knows no resource. */

import type { components } from "./openapi.js";

const API = "/api/v1";
/** A service that says nothing for this long is taken for dead; a living stream says something every 15 s. */
const SILENCE_MS = 45_000;
/** Without an answer for this long, the client gives up. */
const PATIENCE_MS = 3_600_000;
/** A service that has never answered is tried for this long: it may be the wrong address. */
const STRANGER_MS = 10_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;

/** Who calls: a user's token, or a function that has a valid one; or on a server, an API key and the user it acts for. */
export type Credentials =
    | { token: string | (() => string | Promise<string>); apiKey?: never; userId?: never }
    | { apiKey: string; userId?: string; token?: never };

export type ConnectionOptions = Credentials & {
    /** Where the service is, with or without `/api/v1`. */
    baseUrl: string;
    /** How long to try a service that does not answer, in milliseconds; an hour unless said. */
    patienceMs?: number;
    /** After how long without a byte a connection is taken for dead, in milliseconds; 45 s unless said. */
    silenceMs?: number;
    /** What to call instead of the global `fetch`. */
    fetch?: typeof fetch;
};

export interface CallOptions {
    body?: unknown;
    /** Makes a POST repeatable: the service carries it out once, however often it is sent. */
    idempotencyKey?: string;
    signal?: AbortSignal | undefined;
}

/** The problem document of a refusal; of a proxy between, what there is of it. */
export type Problem = Partial<components["schemas"]["Problem"]>;

/** The service refused, and would refuse again. */
export class Refused extends Error {
    override readonly name = "Refused";

    constructor(
        readonly status: number,
        readonly problem: Problem,
    ) {
        super(problem.detail || problem.title || `The service answered with ${status}.`);
    }

    /** What kind of problem it is; programs look at this. */
    get code(): string {
        return this.problem.code ?? "";
    }
}

/** The service did not answer for too long, or what answers is not the service. */
export class Unreachable extends Error {
    override readonly name = "Unreachable";
}

/** Trouble that passes. */
class Passing extends Error {
    constructor(
        message: string,
        readonly retryAfterMs: number | null = null,
    ) {
        super(message);
    }
}

export class Connection {
    readonly #options: ConnectionOptions;
    readonly #fetch: typeof fetch;
    readonly #base: string;
    readonly #silenceMs: number;
    #known = false;

    constructor(options: ConnectionOptions) {
        this.#options = options;
        this.#fetch = options.fetch ?? ((...call) => fetch(...call));
        this.#base = options.baseUrl.replace(/\/+$/, "").replace(/\/api\/v1$/, "") + API;
        this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    }

    /** Call the service until it has answered, and read its JSON. Nothing is sent twice that is not safe to repeat. */
    async call<Result>(method: string, path: string, options: CallOptions = {}): Promise<Result> {
        const repeatable = method !== "POST" || options.idempotencyKey !== undefined;
        const headers: Record<string, string> = { Accept: "application/json" };
        if (options.body !== undefined) headers["Content-Type"] = "application/json";
        if (options.idempotencyKey !== undefined) headers["Idempotency-Key"] = options.idempotencyKey;
        const body = options.body === undefined ? null : JSON.stringify(options.body);
        for (const waiting = this.#waiting(options.signal); ; ) {
            const watch = new Watch(this.#silenceMs, options.signal);
            let trouble: unknown;
            try {
                const response = await this.#send(path, { method, headers, body }, watch);
                return (response.status === 204 ? undefined : await response.json()) as Result;
            } catch (error) {
                trouble = error;
            } finally {
                watch.close();
            }
            if (!repeatable) throw trouble instanceof Passing ? new Unreachable(trouble.message) : trouble;
            await waiting.wait(trouble);
        }
    }

    /** Read the objects of a stream, over as many connections as it takes: each begins after what `cursor` returns. */
    async *follow<Line>(
        path: string,
        cursor: () => string | undefined,
        signal: AbortSignal | undefined,
    ): AsyncGenerator<Line, void, undefined> {
        for (const waiting = this.#waiting(signal); ; ) {
            const watch = new Watch(this.#silenceMs, signal);
            let trouble: unknown = new Passing("The stream was cut.");
            try {
                const after = cursor();
                const place = after === undefined ? path : `${path}&after=${encodeURIComponent(after)}`;
                const response = await this.#send(place, { headers: { Accept: "text/event-stream" } }, watch);
                if (response.status === 204 || response.body === null) return; // The cursor is at the very end.
                if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw notOurs(path);
                for await (const line of linesOf(response.body, watch)) {
                    waiting.over();
                    if (line.startsWith("data:")) yield JSON.parse(line.slice("data:".length)) as Line;
                }
            } catch (error) {
                trouble = error;
            } finally {
                watch.close();
            }
            await waiting.wait(trouble);
        }
    }

    /** Send a request once; throws `Refused`, or what `wait` waits out. */
    async #send(path: string, init: RequestInit, watch: Watch): Promise<Response> {
        let token = await this.#token();
        for (;;) {
            const headers = { ...init.headers, ...this.#identity(token) };
            const request = { ...init, headers, signal: watch.signal };
            const response = await this.#fetch.call(undefined, this.#base + path, request);
            watch.heard();
            if (response.ok) {
                this.#known = true;
                return response;
            }
            const refused = await refusal(response);
            this.#known ||= refused.problem.code !== undefined;
            if (response.status === 401 && token !== undefined) {
                const next = await this.#token(); // It may have ended meanwhile.
                if (next !== token) {
                    token = next;
                    continue;
                }
            }
            const passes = response.status >= 500 || response.status === 408 || response.status === 429;
            if (!passes && refused.code !== "idempotency_key_in_use") throw refused;
            const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
            const message = `The service answers ${response.status}: ${refused.message}`;
            throw new Passing(message, Number.isFinite(seconds) ? seconds * 1000 : null);
        }
    }

    async #token(): Promise<string | undefined> {
        const { token } = this.#options;
        return typeof token === "function" ? await token() : token;
    }

    #identity(token: string | undefined): Record<string, string> {
        if (token !== undefined) return { Authorization: `Bearer ${token}` };
        const { apiKey, userId } = this.#options;
        if (apiKey === undefined) return {};
        return userId === undefined ? { Authorization: `Bearer ${apiKey}` } : { "X-API-Key": apiKey, "X-User-ID": userId };
    }

    #waiting(signal: AbortSignal | undefined): Waiting {
        return new Waiting(signal, () => Math.min(this.#options.patienceMs ?? PATIENCE_MS, this.#known ? Infinity : STRANGER_MS));
    }
}

/** How long the trouble of one call, or of one stream, has lasted. */
class Waiting {
    #since: number | null = null;
    #pauseMs = FIRST_PAUSE_MS;

    constructor(
        readonly signal: AbortSignal | undefined,
        readonly patienceMs: () => number,
    ) {}

    /** The service answers. */
    over(): void {
        this.#since = null;
        this.#pauseMs = FIRST_PAUSE_MS;
    }

    /** Wait as long as the service asks for, or a little longer each time; throws what does not pass. */
    async wait(error: unknown): Promise<void> {
        this.signal?.throwIfAborted();
        if (!(error instanceof Passing) && !isOfNetwork(error)) throw error;
        const now = performance.now();
        this.#since ??= now;
        const retryAfterMs = error instanceof Passing ? error.retryAfterMs : null;
        if (retryAfterMs === null && now - this.#since >= this.patienceMs()) {
            throw new Unreachable(`The service does not answer. Is its address right? (${messageOf(error)})`, { cause: error });
        }
        await pause(Math.max(retryAfterMs ?? 0, this.#pauseMs * (0.5 + Math.random() / 2)), this.signal);
        this.signal?.throwIfAborted();
        this.#pauseMs = Math.min(this.#pauseMs * 2, LONGEST_PAUSE_MS);
    }
}

/** Ends a connection that says nothing for too long, or that is not wanted any more. */
class Watch {
    readonly #connection = new AbortController();
    readonly #silenceMs: number;
    readonly #outer: AbortSignal | undefined;
    readonly #stop = () => this.#connection.abort(this.#outer?.reason);
    #timer: ReturnType<typeof setTimeout>;

    constructor(silenceMs: number, outer: AbortSignal | undefined) {
        this.#silenceMs = silenceMs;
        this.#outer = outer;
        this.#timer = this.#start();
        outer?.addEventListener("abort", this.#stop);
        if (outer?.aborted) this.#stop();
    }

    get signal(): AbortSignal {
        return this.#connection.signal;
    }

    heard(): void {
        clearTimeout(this.#timer);
        this.#timer = this.#start();
    }

    close(): void {
        clearTimeout(this.#timer);
        this.#outer?.removeEventListener("abort", this.#stop);
        this.#connection.abort();
    }

    #start(): ReturnType<typeof setTimeout> {
        return setTimeout(() => this.#connection.abort(new Passing("The service says nothing any more.")), this.#silenceMs);
    }
}

/** Read whole lines; one without an end was cut. */
async function* linesOf(body: ReadableStream<Uint8Array>, watch: Watch): AsyncGenerator<string, void, undefined> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let pieces: string[] = [];
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        watch.heard();
        const [first = "", ...lines] = decoder.decode(value, { stream: true }).split("\n");
        pieces.push(first);
        for (const line of lines) {
            yield pieces.join("");
            pieces = [line];
        }
    }
}

async function refusal(response: Response): Promise<Refused> {
    let problem: Problem = { title: response.statusText };
    try {
        const body: unknown = await response.json();
        if (typeof body === "object" && body !== null) problem = body;
    } catch {
        // A proxy between says it in its own words.
    }
    return new Refused(response.status, problem);
}

function notOurs(path: string): Unreachable {
    return new Unreachable(`What answers at ${path} is not agent-relay. Is the address right?`);
}

/** Whether `fetch` or the reading of a body failed: browsers and Node say so with a TypeError, or an abort of ours. */
function isOfNetwork(error: unknown): boolean {
    return error instanceof TypeError || (error instanceof DOMException && error.name === "NetworkError");
}

function messageOf(error: unknown): string {
    return error instanceof Error ? error.message : String(error);
}

/** Wait; an abort, or a browser that is online again, ends it early. */
function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
        const end = () => {
            clearTimeout(timer);
            signal?.removeEventListener("abort", end);
            globalThis.removeEventListener?.("online", end);
            resolve();
        };
        const timer = setTimeout(end, milliseconds);
        signal?.addEventListener("abort", end);
        globalThis.addEventListener?.("online", end);
    });
}
