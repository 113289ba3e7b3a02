// What the batches page knows: agents, batches, and the results of the open one, as far as they have come.

import { call, messageOf, openStream, pause, Refused, Unreachable } from "../shared/api.ts";
import { counted } from "../shared/format.ts";
import { newId } from "../shared/ids.ts";
import { linesOf } from "../shared/stream.ts";
import type { Agent, Batch, BatchLine, Page } from "../shared/types.ts";
import type { Item } from "./table-file.ts";
import { linesOfItems } from "./table-file.ts";

const SHOW_MS = 250;
const REFRESH_MS = 10_000;
const RETRY_MS = 2_000;
const LONGEST_SUMMARY = 200;
const RATE_MS = 30_000;

/** A result, as the table keeps it: what is longer is read again when somebody opens it. */
export interface Result {
    customId: string;
    runId: string;
    status: string;
    summary: string;
}

export class Store {
    agents: Agent[] | null = null;
    batches: Batch[] = [];
    loaded = false;
    batch: Batch | null = null;
    batchId: string | null = null;
    results: Result[] = [];
    connected = true;
    trouble = "";
    notice = "";
    submitting = "";
    private samples: { at: number; ended: number }[] = [];
    private following = new AbortController();
    private shown = false;
    private readonly listeners = new Set<() => void>();

    listen(listener: () => void): () => void {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    }

    changed(): void {
        for (const listener of this.listeners) listener();
    }

    /** Show changes that come by the hundred a few times a second. */
    private soon(): void {
        if (this.shown) return;
        this.shown = true;
        setTimeout(() => {
            this.shown = false;
            this.changed();
        }, SHOW_MS);
    }

    async start(): Promise<void> {
        addEventListener("popstate", () => this.open(batchOfAddress(), false));
        addEventListener("focus", () => void this.refresh());
        addEventListener("online", () => void this.refresh());
        setInterval(() => document.visibilityState === "visible" && void this.refresh(), REFRESH_MS);
        this.open(batchOfAddress(), false);
        await this.refresh();
    }

    private async attempt(work: () => Promise<void>): Promise<void> {
        try {
            await work();
            this.trouble = "";
        } catch (error) {
            this.trouble = error instanceof Unreachable ? "The service does not answer. Trying again." : messageOf(error);
        }
        this.changed();
    }

    private async refresh(): Promise<void> {
        await this.attempt(async () => {
            this.agents ??= await call<Agent[]>("agents");
            this.batches = (await call<Page<Batch>>("batches?limit=100")).items;
            this.loaded = true;
        });
    }

    get agent(): Agent | null {
        return this.agents?.find((agent) => agent.agent_type === this.batch?.agent_type) ?? null;
    }

    /** Open a batch, or with null the form of a new one. */
    open(batchId: string | null, remember = true): void {
        if (remember) history.pushState(null, "", batchId ? `?batch=${batchId}` : location.pathname);
        this.following.abort();
        this.following = new AbortController();
        this.batchId = batchId;
        this.batch = null;
        this.results = [];
        this.samples = [];
        this.notice = "";
        this.connected = true;
        this.changed();
        if (batchId) void this.follow(batchId, this.following.signal);
    }

    /** Read the results that there are and follow those that come, until the batch has ended. */
    private async follow(batchId: string, signal: AbortSignal): Promise<void> {
        while (!signal.aborted) {
            const connection = new AbortController();
            const stop = () => connection.abort();
            signal.addEventListener("abort", stop);
            addEventListener("offline", stop);
            try {
                const batch = await call<Batch>(`batches/${batchId}`, { signal });
                if (signal.aborted) return;
                this.batch = batch;
                const response = await openStream(`batches/${batchId}/results?follow=true&after=${this.results.length}`, connection.signal);
                this.connected = true;
                for await (const line of linesOf<BatchLine>(response, connection)) {
                    if (signal.aborted) return;
                    if (this.take(line)) {
                        this.batch = await call<Batch>(`batches/${batchId}`, { signal });
                        this.changed();
                        void this.refresh();
                        return;
                    }
                }
            } catch (error) {
                if (signal.aborted) return;
                if (error instanceof Refused && error.status === 404) {
                    this.batchId = null;
                    this.notice = "This batch is not there any more.";
                    history.replaceState(null, "", location.pathname);
                    this.changed();
                    return;
                }
                if (error instanceof Refused && error.status < 500 && error.status !== 429) {
                    this.notice = messageOf(error);
                    this.changed();
                    return;
                }
            } finally {
                signal.removeEventListener("abort", stop);
                removeEventListener("offline", stop);
            }
            this.connected = false;
            this.changed();
            await pause(RETRY_MS, signal);
        }
    }

    /** Take a line in; true where it says that the batch has ended. */
    private take(line: BatchLine): boolean {
        if (line.counts) {
            if (this.batch) this.batch = { ...this.batch, counts: line.counts, status: line.status };
            const { succeeded, failed, cancelled } = line.counts;
            const now = performance.now();
            this.samples.push({ at: now, ended: succeeded + failed + cancelled });
            this.samples = this.samples.filter((sample) => now - sample.at < RATE_MS);
        } else if (line.custom_id !== undefined) {
            const value = line.error ? `${line.error.code}: ${line.error.message}` : (line.output ?? "");
            const text = typeof value === "string" ? value : JSON.stringify(value);
            this.results.push({
                customId: line.custom_id,
                runId: line.run_id ?? "",
                status: line.status,
                summary: text.length > LONGEST_SUMMARY ? copied(text.slice(0, LONGEST_SUMMARY)) : text,
            });
        }
        this.soon();
        return line.counts !== undefined && (line.status === "completed" || line.status === "cancelled");
    }

    /** Results a second, over the last half minute; null where it is not known. */
    get rate(): number | null {
        const [first, last] = [this.samples[0], this.samples.at(-1)];
        if (!first || !last || last.at - first.at < 1_000) return null;
        return ((last.ended - first.ended) / (last.at - first.at)) * 1_000;
    }

    async submit(agentType: string, items: Item[], fileName: string): Promise<void> {
        const idempotencyKey = newId();
        const head = new URLSearchParams({ agent_type: agentType, metadata: JSON.stringify({ file: fileName.slice(0, 200) }) });
        this.notice = "";
        for (;;) {
            this.submitting = `Sending ${counted(items.length, "row")}…`;
            this.changed();
            try {
                const options = { method: "POST", lines: linesOfItems(items), idempotencyKey };
                const batch = await call<Batch>(`batches?${head}`, options);
                this.submitting = "";
                this.open(batch.id);
                await this.refresh();
                return;
            } catch (error) {
                if (error instanceof Unreachable) {
                    this.submitting = "The service does not answer. The rows are sent again until they arrive, and accepted once.";
                    this.changed();
                    await pause(RETRY_MS);
                    continue;
                }
                const errors = error instanceof Refused ? (error.problem.errors ?? []).slice(0, 10) : [];
                this.notice = [messageOf(error), ...errors.map((each) => `${each.pointer}: ${each.message}`)].join("\n");
                this.submitting = "";
                this.changed();
                return;
            }
        }
    }

    async cancel(): Promise<void> {
        const { batch } = this;
        if (batch) await this.act(async () => void (this.batch = await call<Batch>(`batches/${batch.id}/cancel`, { method: "POST" })));
    }

    /** Ask again what failed, as a batch of its own. */
    async retry(): Promise<void> {
        const { batch } = this;
        if (!batch) return;
        await this.act(async () => {
            const again = await call<Batch>(`batches/${batch.id}/retry`, { method: "POST", idempotencyKey: newId() });
            this.open(again.id);
            await this.refresh();
        });
    }

    async act(work: () => Promise<void>): Promise<void> {
        try {
            this.notice = "";
            await work();
        } catch (error) {
            this.notice = messageOf(error);
        }
        this.changed();
    }
}

/** A text of its own: a browser may keep all of a long text for a part of it. */
function copied(text: string): string {
    return JSON.parse(JSON.stringify(text)) as string;
}

function batchOfAddress(): string | null {
    return new URLSearchParams(location.search).get("batch");
}
