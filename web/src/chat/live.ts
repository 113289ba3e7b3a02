// A run as it is followed: what its stream has told so far. Components listen; they hear at most once a frame, and less
// often where what they show takes longer to show than a frame lasts.

import { useEffect, useState } from "preact/hooks";

import { call, messageOf, pause, Refused } from "../shared/api.ts";
import { secondsBetween } from "../shared/format.ts";
import { grown } from "../shared/growth.ts";
import { follow } from "../shared/stream.ts";
import type { Json, Run, RunError, RunRequest, StreamEvent, Usage } from "../shared/types.ts";
import { readSteps } from "./run-steps.ts";

const UNFINISHED = new Set(["queued", "running", "waiting"]);
const QUEUE_POLL_MS = 2_000;
const RETRY_MS = 2_000;
const COST_SHARE = 4;
/** A call that is told this soon after the stream was opened was made before. */
const REPLAYED_MS = 100;

export interface Step {
    id: string;
    name: string;
    args: Json | undefined;
    result: Json | undefined;
    ended: boolean;
    /** Whether it was called before the run came to wait: no later attempt calls it again. */
    settled: boolean;
    calledAt: number;
    /** Time between call and result: as it arrived while this page listened, else as the run's steps say. */
    seconds: number | null;
}

export interface Thought {
    part: number;
    text: string;
}

export interface Attempt {
    number: number;
    reason: string;
    stepsKept: number;
}

/** What the page does about a run that it follows. */
export interface Follows {
    /** The run has ended, or cannot be followed any more. */
    ended(): void;
    /** The agent has got a message that was sent into the run. */
    gotMessage(id: string): void;
}

export class Live {
    text: string | null = null;
    steps: Step[] = [];
    thoughts: Thought[] = [];
    /** Whether the newest event is about what the model thinks. */
    thinking = false;
    attempts: Attempt[] = [];
    /** What the run waits for and has waited for, as its row says. */
    requests: RunRequest[] = [];
    /** The ids of the messages into the run that the agent has got. */
    readonly taken = new Set<string>();
    /** The id of the message that asks. */
    queryId: string | null = null;
    usage: Usage | null = null;
    error: RunError | null = null;
    status = "queued";
    queuePosition: number | null = null;
    served: boolean | null = null;
    connected = true;
    gap = false;
    trouble = "";
    private readonly listeners = new Set<() => void>();
    private readonly stopped = new AbortController();
    private scheduled = false;
    private lastCost = 0;
    private openedAt = 0;
    /** Read what the run waits for, and what was answered, from the run itself: an event leaves out what is large. */
    private readonly readRequests = this.reader(async (signal) => this.takeRequests(await call<Run>(`runs/${this.runId}`, { signal })));
    /** Read how long the calls took whose events this page did not see arrive. */
    private readonly readTimes = this.reader(async (signal) => {
        const { steps } = await readSteps(this.runId, signal);
        for (const stored of steps) {
            const step = this.steps.find((each) => each.id === stored.tool_call_id);
            if (step) step.seconds ??= secondsBetween(stored.started_at, stored.finished_at);
        }
        this.changed();
    });

    constructor(
        readonly runId: string,
        private readonly follows: Follows,
    ) {}

    /** Whether the run has not ended. */
    get running(): boolean {
        return UNFINISHED.has(this.status);
    }

    /** Take over what is known of the run before its stream says more. */
    begin(run: Run): void {
        if (UNFINISHED.has(run.status)) this.status = run.status;
        this.requests = run.requests;
    }

    start(): void {
        void this.watchQueue();
        void this.follow();
    }

    stop(): void {
        this.stopped.abort();
    }

    listen(listener: () => void): () => void {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    }

    private async follow(): Promise<void> {
        try {
            await follow(
                this.runId,
                {
                    event: (event) => this.take(event),
                    connected: (connected) => {
                        this.connected = connected;
                        this.openedAt = performance.now();
                        this.changed();
                    },
                    restarted: () => this.forget(),
                },
                this.stopped.signal,
            );
        } catch (error) {
            this.trouble = messageOf(error);
        }
        if (!this.stopped.signal.aborted) this.follows.ended();
        this.changed();
    }

    private take(event: StreamEvent): void {
        this.thinking = event.event === "reasoning_delta";
        switch (event.event) {
            case "message_created":
                this.queryId = event.message?.id ?? null;
                break;
            case "message_started":
                this.status = "running";
                this.text = null;
                if (!event.steps_kept) this.steps = this.steps.filter((each) => each.settled);
                if (event.reason !== "answered") this.thoughts = this.thoughts.filter((each) => each.part <= (event.reasoning_kept ?? 0));
                this.gap = false;
                this.attempts.push({ number: event.attempt ?? 1, reason: event.reason ?? "first", stepsKept: event.steps_kept ?? 0 });
                break;
            case "waiting":
                this.status = "waiting";
                for (const step of this.steps) step.settled = true;
                this.readRequests();
                break;
            case "answered":
                this.readRequests();
                break;
            case "message_enqueued":
                if (event.message) {
                    this.taken.add(event.message.id);
                    this.follows.gotMessage(event.message.id);
                }
                break;
            case "text_delta":
                this.status = "running";
                this.text = grown(this.text ?? "", event);
                break;
            case "reasoning_delta": {
                const thought = this.thoughts.find((each) => each.part === event.part);
                if (thought) thought.text = grown(thought.text, event);
                else this.thoughts.push({ part: event.part ?? 1, text: grown("", event) });
                break;
            }
            case "tool_call":
                this.steps = this.steps.filter((each) => each.ended || each.id !== event.tool_call_id);
                this.steps.push({
                    id: event.tool_call_id ?? event.id,
                    name: event.tool_name ?? "tool",
                    args: event.args,
                    result: undefined,
                    ended: false,
                    settled: false,
                    calledAt: performance.now(),
                    seconds: null,
                });
                break;
            case "tool_result": {
                const step = this.steps.findLast((each) => each.id === event.tool_call_id);
                if (step) {
                    step.result = event.content;
                    step.ended = true;
                    if (step.calledAt - this.openedAt > REPLAYED_MS) step.seconds = (performance.now() - step.calledAt) / 1000;
                    else this.readTimes();
                }
                break;
            }
            case "message_complete":
                this.usage = event.usage ?? null;
                break;
            case "error":
                this.error = event.error ?? null;
                break;
            case "gap":
                this.gap = true;
                break;
            case "done":
                this.status = event.status ?? "succeeded";
                if (this.steps.some((step) => step.ended && step.seconds === null)) this.readTimes();
                break;
        }
        this.changed();
    }

    /** Make a function that has something read again: one call at a time, and one that began after the last wish. */
    private reader(read: (signal: AbortSignal) => Promise<void>): () => void {
        let wished = 0;
        const work = async () => {
            const { signal } = this.stopped;
            while (wished && !signal.aborted) {
                const seen = wished;
                try {
                    await read(signal);
                    wished -= seen;
                } catch (error) {
                    if (error instanceof Refused && error.status < 500 && error.status !== 429) wished = 0;
                    else await pause(RETRY_MS, signal);
                }
            }
        };
        return () => {
            if (!wished++) void work();
        };
    }

    private takeRequests(run: Run): void {
        this.requests = run.requests;
        if (this.status === "waiting" && run.status === "queued") {
            this.status = "queued";
            void this.watchQueue();
        }
        this.changed();
    }

    /** Answer one of the requests; raises what `call` does. The same answer may be given again. */
    async answer(requestId: string, answer: Record<string, Json>): Promise<void> {
        const body = { answers: [{ request_id: requestId, ...answer }] };
        try {
            this.takeRequests(await call<Run>(`runs/${this.runId}/answers`, { method: "POST", body }));
        } catch (error) {
            if (error instanceof Refused && error.status === 409) this.readRequests();
            throw error;
        }
    }

    private forget(): void {
        this.text = null;
        this.steps = [];
        this.thoughts = [];
        this.attempts = [];
    }

    /** While it waits in the queue: say how many are before it, and whether anybody serves its agent. */
    private async watchQueue(): Promise<void> {
        while (this.status === "queued" && !this.stopped.signal.aborted) {
            try {
                const run = await call<Run>(`runs/${this.runId}`, { signal: this.stopped.signal });
                if (run.status !== "queued") return;
                this.queuePosition = run.queue_position;
                this.served = run.served;
                this.changed();
            } catch {
                // The stream says what is wrong.
            }
            await pause(QUEUE_POLL_MS, this.stopped.signal);
        }
    }

    private changed(): void {
        if (this.scheduled) return;
        this.scheduled = true;
        const show = () =>
            requestAnimationFrame(() => {
                this.scheduled = false;
                const began = performance.now();
                for (const listener of this.listeners) listener();
                requestAnimationFrame(() => {
                    this.lastCost = performance.now() - began;
                });
            });
        setTimeout(show, this.running && this.lastCost > 34 ? this.lastCost * COST_SHARE : 0);
    }
}

/** Show a component again whenever the run has changed. */
export function useLive(live: Live | null): void {
    const [, setCount] = useState(0);
    useEffect(() => live?.listen(() => setCount((count) => count + 1)), [live]);
}
