// Calls of the API. All addresses are relative, so that the service may lie behind any prefix. The session's cookie says
// who calls; a header that no other site can send says that a page of ours does.

import { parseJson } from "./json.ts";
import type { Problem } from "./types.ts";

const PAGE_HEADER = "X-Agent-Relay-Page";
const API = "api/v1/";
export const RETURN_TO = "agent-relay:return-to";

/** A refusal of the API: its problem document. */
export class Refused extends Error {
    constructor(
        readonly status: number,
        readonly problem: Problem,
        readonly retryAfterSeconds: number | null,
    ) {
        super(problem.detail || problem.title || `The service answered ${status}.`);
    }
}

/** The service did not answer: it is away, or the network is. */
export class Unreachable extends Error {}

export interface Options {
    method?: string;
    body?: unknown;
    /** A body of JSON lines, instead of one that is JSON. */
    lines?: Blob;
    idempotencyKey?: string;
    accept?: string;
    signal?: AbortSignal;
}

/** Call a path of the service; raises `Refused`, `Unreachable`, or an abort of the signal. */
export async function request(path: string, options: Options = {}): Promise<Response> {
    const headers: Record<string, string> = { [PAGE_HEADER]: "1", Accept: options.accept ?? "application/json" };
    if (options.body !== undefined) headers["Content-Type"] = "application/json";
    if (options.lines) headers["Content-Type"] = "application/x-ndjson";
    if (options.idempotencyKey) headers["Idempotency-Key"] = options.idempotencyKey;
    const init: RequestInit = { method: options.method ?? "GET", headers, credentials: "same-origin" };
    if (options.body !== undefined) init.body = JSON.stringify(options.body);
    if (options.lines) init.body = options.lines;
    if (options.signal) init.signal = options.signal;
    let response: Response;
    try {
        response = await fetch(path, init);
    } catch (error) {
        if (options.signal?.aborted) throw error;
        throw new Unreachable("The service does not answer.");
    }
    if (response.ok) return response;
    throw await refusal(response);
}

async function refusal(response: Response): Promise<Refused> {
    let problem: Problem = { code: "", title: response.statusText };
    try {
        const body: unknown = await response.json();
        if (typeof body === "object" && body !== null) problem = body as Problem;
    } catch {
        // A proxy between says it in its own words.
    }
    const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
    return new Refused(response.status, problem, Number.isFinite(seconds) ? seconds : null);
}

/** Call the API and read JSON. Without a session, the page to sign in is opened. */
export async function call<Result>(path: string, options: Options = {}): Promise<Result> {
    const response = await opened(API + path, options);
    return (response.status === 204 ? undefined : parseJson(await response.text())) as Result;
}

/** Read JSON of the pages' own routes, as `call` does. */
export async function read<Result>(path: string): Promise<Result> {
    return (await (await opened(path, {})).json()) as Result;
}

/** Open a stream of lines, each a JSON object. */
export async function openStream(path: string, signal: AbortSignal): Promise<Response> {
    return await opened(API + path, { accept: "application/x-ndjson", signal });
}

async function opened(path: string, options: Options): Promise<Response> {
    try {
        return await request(path, options);
    } catch (error) {
        if (error instanceof Refused && error.status === 401) signIn();
        throw error;
    }
}

/** Go to the page to sign in, and come back here after that. */
export function signIn(): void {
    sessionStorage.setItem(RETURN_TO, location.pathname.split("/").pop() + location.search);
    location.assign("sign-in");
}

/** End a session of this browser, and go to the page to sign in, which leads back to `page`. */
export async function signOut(session: string, page: string): Promise<void> {
    await request(session, { method: "DELETE" });
    sessionStorage.clear();
    sessionStorage.setItem(RETURN_TO, page);
    location.assign("sign-in");
}

/** Wait; an `online` event of the browser or an abort ends it early. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
        const end = () => {
            clearTimeout(timer);
            removeEventListener("online", end);
            signal?.removeEventListener("abort", end);
            resolve();
        };
        const timer = setTimeout(end, milliseconds);
        addEventListener("online", end);
        signal?.addEventListener("abort", end);
        if (signal?.aborted) end();
    });
}

/** Say what is wrong, for people. */
export function messageOf(error: unknown): string {
    return error instanceof Error ? error.message : String(error);
}
