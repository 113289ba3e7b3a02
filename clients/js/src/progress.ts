/** What is known of a run, event after event. */

import type { components } from "./openapi.js";

type Schemas = components["schemas"];
export type Run = Schemas["Run"];
export type RunError = Schemas["RunError"];
export type RunRequest = Schemas["OpenRequest"];
type Told = Schemas["StreamEvent"];

/** An event of a run. What has grown is whole in each: `token` is always there. */
export type StreamEvent =
    | Exclude<Told, { event: "text_delta" | "reasoning_delta" }>
    | (Omit<Schemas["TextDeltaEvent"], "drop" | "append"> & { token: string })
    | (Omit<Schemas["ReasoningDeltaEvent"], "drop" | "append"> & { token: string });

/** A value that is still being written: fields may be missing, and lists and texts may be shorter. */
export type Growing<Value> = Value extends readonly (infer Item)[]
    ? Growing<Item>[]
    : Value extends object
      ? { [Key in keyof Value]?: Growing<Value[Key]> }
      : Value;

interface Known {
    /** What has just been told. */
    event: StreamEvent;
    /** The answer so far: JSON text, or the text of a text agent. Empty again when a new attempt begins. */
    text: string;
    /** How many times a worker has begun to answer, as far as this stream told. */
    attempt: number;
    /** What the run waits for; nothing unless its `status` is `waiting`. */
    requests: RunRequest[];
}

/** A run after an event. It has ended once `status` is `succeeded`, `failed` or `cancelled`. */
export type Progress<Output> = Known &
    (
        | { status: "queued" | "running" | "waiting"; output: Growing<Output> | undefined; error: null }
        | { status: "succeeded"; output: Output; error: null }
        | { status: "failed"; output: Growing<Output> | undefined; error: RunError }
        | { status: "cancelled"; output: Growing<Output> | undefined; error: null }
    );

/** Takes events in, and says after each what is known. */
export class Answer<Output> {
    /** The id of the last event; the next connection goes on after it. */
    cursor: string | undefined;
    #text = "";
    #output: Growing<Output> | undefined;
    #hasText = false;
    #thought = { part: 0, text: "" };
    #attempt = 0;
    #status: "queued" | "running" | "waiting" = "queued";
    #requests: RunRequest[] = [];
    #error: RunError | null = null;

    /** `read` fetches the run itself, for what a stream that is not read from its beginning leaves out. */
    constructor(
        readonly isText: boolean,
        readonly read: () => Promise<Run>,
        after?: string,
    ) {
        this.cursor = after;
    }

    async take(told: Told): Promise<Progress<Output>> {
        const event = this.#whole(told);
        this.cursor = event.id;
        switch (event.event) {
            case "message_started":
                this.#status = "running";
                this.#attempt = event.attempt;
                this.#requests = [];
                this.#take(""); // What came before is void.
                break;
            case "text_delta":
                this.#status = "running";
                this.#take(event.token);
                break;
            case "waiting":
                this.#status = "waiting";
                this.#requests = event.requests;
                break;
            case "answered":
                this.#requests = this.#requests.filter((request) => request.request_id !== event.request_id);
                if (this.#requests.length === 0) this.#status = "queued";
                break;
            case "error":
                this.#error = event.error;
                break;
        }
        const { text, known } = this.#now(event);
        if (event.event !== "done") return { ...known, text, status: this.#status, output: this.#output, error: null };
        switch (event.status) {
            case "waiting":
                return { ...known, text, status: "waiting", output: this.#output, error: null };
            case "succeeded": {
                if (!this.#hasText) this.#takeOutput((await this.read()).output);
                return { ...known, text: this.#text, status: "succeeded", output: this.#output as Output, error: null };
            }
            case "failed": {
                const error = this.#error ?? ((await this.read()).error as RunError);
                return { ...known, text, status: "failed", output: this.#output, error };
            }
            case "cancelled":
                return { ...known, text, status: "cancelled", output: this.#output, error: null };
        }
    }

    #now(event: StreamEvent): { text: string; known: Omit<Known, "text"> } {
        return { text: this.#text, known: { event, attempt: this.#attempt, requests: this.#requests } };
    }

    #whole(told: Told): StreamEvent {
        if (told.event === "text_delta") {
            const { drop, append, token, ...rest } = told;
            return { ...rest, token: token ?? grown(this.#text, drop, append) };
        }
        if (told.event === "reasoning_delta") {
            const { drop, append, token, ...rest } = told;
            const before = told.part === this.#thought.part ? this.#thought.text : "";
            this.#thought = { part: told.part, text: token ?? grown(before, drop, append) };
            return { ...rest, token: this.#thought.text };
        }
        return told;
    }

    #take(text: string): void {
        this.#text = text;
        this.#hasText = text !== "";
        if (this.isText) this.#output = text as Growing<Output>;
        else this.#output = text === "" ? undefined : parsed<Growing<Output>>(text);
    }

    #takeOutput(output: unknown): void {
        this.#text = this.isText ? String(output) : JSON.stringify(output);
        this.#output = output as Growing<Output>;
    }
}

function parsed<Value>(text: string): Value {
    try {
        return JSON.parse(text) as Value;
    } catch (error) {
        const message = "The answer is not JSON. If the agent answers with text, say so: follow(id, { text: true }).";
        throw new TypeError(message, { cause: error });
    }
}

/** Take characters off the end, and append. */
function grown(text: string, drop = 0, append = ""): string {
    return text.slice(0, text.length - drop) + append;
}
