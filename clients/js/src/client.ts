/** The runs of one caller: submit a query, follow its answer. */

import { Connection } from "./connection.js";
import type { CallOptions, ConnectionOptions } from "./connection.js";
import type { components } from "./openapi.js";
import { Answer } from "./progress.js";
import type { Progress, Run } from "./progress.js";

type Told = components["schemas"]["StreamEvent"];

export interface SubmitOptions {
    /** Made by the client unless said. The same key and query are the same run, whoever sends them again. */
    idempotencyKey?: string;
    signal?: AbortSignal;
}

export interface FollowOptions {
    /** The id of an event that was seen before: go on after it. */
    after?: string;
    /** `waiting`: end also where the run waits for answers. */
    until?: "waiting";
    /** The agent answers with text, and not with JSON. */
    text?: boolean;
    /** Stops following; the run goes on. */
    signal?: AbortSignal;
}

export class AgentRelay {
    readonly #connection: Connection;

    constructor(options: ConnectionOptions) {
        this.#connection = new Connection(options);
    }

    /** Have a query accepted, once, whatever happens to the connection; returns its run. */
    async submit(query: components["schemas"]["NewQuery"], options: SubmitOptions = {}): Promise<Run> {
        const { idempotencyKey = newKey(), signal } = options;
        return await this.#connection.call<Run>("POST", "/runs", { body: query, idempotencyKey, signal });
    }

    /**
     * Follow a run to its end, from its beginning or after an event, over as many connections as that takes. What is
     * yielded after each event is the whole answer so far: show it instead of the one before.
     *
     * Throws `Refused`, `Unreachable` where the service does not answer for too long, or the reason of `signal`.
     */
    follow(runId: string, options: FollowOptions & { text: true }): AsyncGenerator<Progress<string>, void, undefined>;
    follow<Output = unknown>(runId: string, options?: FollowOptions): AsyncGenerator<Progress<Output>, void, undefined>;
    async *follow<Output>(runId: string, options: FollowOptions = {}): AsyncGenerator<Progress<Output>, void, undefined> {
        const { after, until, text = false, signal } = options;
        const run = `/runs/${encodeURIComponent(runId)}`;
        const answer = new Answer<Output>(text, () => this.call<Run>("GET", run, { signal }), after);
        const path = `${run}/stream?deltas=true${until === undefined ? "" : `&until=${until}`}`;
        for await (const told of this.#connection.follow<Told>(path, () => answer.cursor, signal)) {
            yield await answer.take(told);
            if (told.event === "done") return;
        }
    }

    /**
     * Call another route, such as `call("POST", "/runs/ID/cancel")`, and read its JSON. It is repeated while the service
     * is away, but for a POST without an `idempotencyKey`.
     */
    async call<Result>(method: "GET" | "POST" | "PATCH" | "DELETE", path: string, options: CallOptions = {}): Promise<Result> {
        return await this.#connection.call<Result>(method, path, options);
    }
}

/** Make a key that nobody else has; `crypto.randomUUID` is not there in pages of plain http. */
function newKey(): string {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
