// What the chat page knows: agents, threads, the open thread and its turns. Other tabs are told of changes, and the
// service is asked now and then whether another device has made one.

import { call, messageOf, pause, Refused, Unreachable } from "../shared/api.ts";
import { DRAFT, type Draft } from "../shared/draft.ts";
import { newId } from "../shared/ids.ts";
import type { Agent, Json, Message, Page, Run, SentMessage, Thread, ThreadWithMessages, Usage } from "../shared/types.ts";
import { Live } from "./live.ts";
import { readSteps, type StoredSteps } from "./run-steps.ts";

const OUTBOX = "agent-relay:outbox";
const AGENT = "agent-relay:agent";
const TITLE_CHARACTERS = 80;
const SEARCH_MS = 250;
const REFRESH_MS = 10_000;
const RETRY_MS = 2_000;
const READ_AGAIN_MS = 100;

/** A message that was sent into a run. */
export interface Added {
    id: string;
    text: string;
}

/** A query and what became of it. */
export interface Turn {
    runId: string;
    /** The id of the message that asks; null where only the stream of the run says it. */
    queryId: string | null;
    query: string;
    /** What was sent into the run while it ran. */
    added: Added[];
    answer: string | null;
    interrupted: boolean;
    run: Run | null;
    usage: Usage | null;
    model: string;
    live: Live | null;
    /** All that the run has done, where somebody has asked for it. */
    steps: StoredSteps | null;
    receipt: string;
}

/** A query that the service has not accepted yet. It survives a reload; its keys keep it from being asked twice. */
export interface Pending {
    threadKey: string;
    runKey: string;
    threadId: string | null;
    agentType: string;
    query: string;
    /** The run that this is a message into; null where it is a query. */
    into: string | null;
    /** The message that this query takes the place of, with all after it. */
    replaceFrom: string | null;
    problem: string;
    waiting: boolean;
}

export class Store {
    agents: Agent[] | null = null;
    agentType = localStorage.getItem(AGENT) ?? "";
    /** The threads as far as they are loaded; of a search, those that it found. */
    threads: Thread[] = [];
    /** The text that threads are searched for; empty for all of them. */
    words = "";
    threadsLoaded = false;
    moreThreads: string | null = null;
    threadId: string | null = null;
    thread: Thread | null = null;
    turns: Turn[] = [];
    pending: Pending | null = null;
    loading = false;
    trouble = "";
    /** What became of something that was asked for; it stays until the next thread is opened. */
    notice = "";
    announcement = "";
    private readonly listeners = new Set<() => void>();
    private readonly tabs = new BroadcastChannel("agent-relay");
    private openings = 0;
    private shownWords = "";
    private searching: ReturnType<typeof setTimeout> | undefined;
    private reading: ReturnType<typeof setTimeout> | undefined;

    listen(listener: () => void): () => void {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    }

    changed(): void {
        for (const listener of this.listeners) listener();
    }

    async start(): Promise<void> {
        this.tabs.addEventListener("message", ({ data }: MessageEvent<unknown>) => {
            if (data === this.threadId) this.readAgain();
            else void this.refresh();
        });
        addEventListener("popstate", () => void this.open(threadOfAddress(), false));
        addEventListener("focus", () => void this.refresh());
        addEventListener("online", () => void this.refresh());
        setInterval(() => document.visibilityState === "visible" && void this.refresh(), REFRESH_MS);
        this.pending = readOutbox();
        await Promise.all([this.loadAgents(), this.loadThreads(), this.open(threadOfAddress(), false)]);
        if (this.pending) void this.deliver(this.pending);
    }

    /** The turn whose run a message can be sent into: the first that has not ended. */
    get underWay(): Turn | null {
        const turn = this.turns.find((each) => each.live?.running);
        const startsLater = turn?.run?.start_at && new Date(turn.run.start_at).getTime() > Date.now();
        return turn && !startsLater ? turn : null;
    }

    get agent(): Agent | null {
        const name = this.thread?.agent_type ?? this.agentType;
        return this.agents?.find((agent) => agent.agent_type === name) ?? null;
    }

    chooseAgent(name: string): void {
        this.agentType = name;
        localStorage.setItem(AGENT, name);
        this.changed();
    }

    /** What another page wants to be asked here. */
    takeDraft(): string {
        const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null") as Draft | null;
        sessionStorage.removeItem(DRAFT);
        if (draft) this.agentType = draft.agentType;
        return draft?.query ?? "";
    }

    announce(text: string): void {
        this.announcement = text;
        this.changed();
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

    private async loadAgents(): Promise<void> {
        await this.attempt(async () => {
            this.agents = await call<Agent[]>("agents");
            if (!this.agents.some((agent) => agent.agent_type === this.agentType)) {
                this.agentType = (this.agents.find((agent) => agent.served) ?? this.agents[0])?.agent_type ?? "";
            }
        });
    }

    async loadThreads(): Promise<void> {
        const { words } = this;
        await this.attempt(async () => {
            const page = await call<Page<Thread>>(pathOfThreads(words));
            if (words !== this.words) return;
            if (words !== this.shownWords) {
                this.shownWords = words;
                this.threads = [];
                this.threadsLoaded = false;
            }
            const known = new Set(page.items.map((thread) => thread.id));
            const older = page.next_cursor ? this.threads.filter((thread) => !known.has(thread.id) && thread.created_at < (page.items.at(-1)?.created_at ?? "")) : [];
            this.threads = [...page.items, ...older];
            if (!this.threadsLoaded) this.moreThreads = page.next_cursor;
            this.threadsLoaded = true;
        });
    }

    /** Load a page of older threads. */
    async loadMoreThreads(): Promise<void> {
        const { shownWords, moreThreads } = this;
        if (!moreThreads) return;
        await this.attempt(async () => {
            const older = await call<Page<Thread>>(`${pathOfThreads(shownWords)}&cursor=${encodeURIComponent(moreThreads)}`);
            if (shownWords !== this.shownWords) return;
            const known = new Set(this.threads.map((thread) => thread.id));
            this.threads = [...this.threads, ...older.items.filter((thread) => !known.has(thread.id))];
            this.moreThreads = older.next_cursor;
        });
    }

    /** Show the threads that have a text in their title or in a message; with an empty one, all. */
    search(words: string): void {
        this.words = words.trim();
        this.changed();
        clearTimeout(this.searching);
        this.searching = setTimeout(() => void this.loadThreads(), this.words ? SEARCH_MS : 0);
    }

    /** Whether the threads that are shown are those that are searched for. */
    get searched(): boolean {
        return this.threadsLoaded && this.words === this.shownWords;
    }

    /** Give a thread another title; without one it is named after its agent. */
    async rename(thread: Thread, title: string): Promise<void> {
        await this.attempt(async () => {
            const body = { title: title.trim() || null };
            if (body.title === thread.title) return;
            const renamed = await call<Thread>(`threads/${thread.id}`, { method: "PATCH", body });
            this.threads = this.threads.map((each) => (each.id === thread.id ? renamed : each));
            if (this.thread?.id === thread.id) this.thread = renamed;
            this.announce(`The thread is called ${titleOf(renamed)}.`);
            this.tabs.postMessage("renamed");
        });
    }

    /** Look whether another tab or device has changed something. */
    private async refresh(): Promise<void> {
        if (this.agents === null) await this.loadAgents();
        await this.loadThreads();
        const { threadId } = this;
        if (!threadId || this.loading || this.pending?.replaceFrom) return;
        try {
            const newest = await call<Page<Run>>(`runs?thread_id=${threadId}&limit=1`);
            const run = newest.items[0];
            const known = run && this.turns.find((turn) => turn.runId === run.id);
            const missed = run && (!known || (!known.live && known.run?.status !== run.status));
            if ((missed || this.hasNewMessage()) && this.threadId === threadId) await this.open(threadId, false);
        } catch {
            // The next look comes soon.
        }
    }

    /** Whether somebody has sent a message into a run of the open thread since it was read. */
    private hasNewMessage(): boolean {
        const listed = this.threads.find((each) => each.id === this.threadId);
        return this.underWay !== null && listed !== undefined && listed.last_message_at !== this.thread?.last_message_at;
    }

    /** Open a thread, or with null an empty page to begin one. */
    async open(threadId: string | null, remember = true): Promise<void> {
        const opening = ++this.openings;
        if (remember) history.pushState(null, "", threadId ? `?thread=${threadId}` : location.pathname);
        if (threadId !== this.threadId) {
            for (const turn of this.turns) turn.live?.stop();
            this.turns = [];
            this.thread = null;
        }
        if (remember || threadId !== null) this.notice = "";
        this.threadId = threadId;
        this.loading = threadId !== null;
        this.changed();
        if (threadId === null) return;
        await this.attempt(async () => {
            try {
                const [thread, runs] = await Promise.all([
                    call<ThreadWithMessages>(`threads/${threadId}`),
                    call<Page<Run>>(`runs?thread_id=${threadId}&limit=100`),
                ]);
                if (opening !== this.openings) return;
                this.thread = thread;
                this.turns = this.turnsOf(thread.messages, runs.items);
            } catch (error) {
                if (opening === this.openings && error instanceof Refused && error.status === 404) {
                    this.threadId = null;
                    history.replaceState(null, "", location.pathname);
                    this.notice = "This thread is not there any more.";
                    return;
                }
                if (opening === this.openings && error instanceof Unreachable) void this.openAgain(threadId, opening);
                throw error;
            } finally {
                if (opening === this.openings) this.loading = false;
            }
        });
    }

    private async openAgain(threadId: string, opening: number): Promise<void> {
        await pause(RETRY_MS);
        if (opening === this.openings) await this.open(threadId, false);
    }

    private turnsOf(messages: Message[], runs: Run[]): Turn[] {
        const byId = new Map(runs.map((run) => [run.id, run]));
        const former = new Map(this.turns.map((turn) => [turn.runId, turn]));
        const answers = new Map<string, Message>();
        const queries = new Map<string, Message[]>();
        for (const message of messages) {
            const runId = message.metadata.run_id;
            if (typeof runId !== "string") continue;
            if (message.role === "assistant") answers.set(runId, message);
            else if (message.role === "user") queries.set(runId, [...(queries.get(runId) ?? []), message]);
        }
        return messages
            .filter((message) => queries.get(String(message.metadata.run_id))?.[0] === message)
            .map((message) => {
                const runId = String(message.metadata.run_id);
                const run = byId.get(runId) ?? null;
                const answer = answers.get(runId);
                const known = former.get(runId);
                const ended = run ? !isUnfinished(run.status) : answer !== undefined;
                const turn: Turn = {
                    runId,
                    queryId: message.id,
                    query: message.content,
                    added: (queries.get(runId) ?? []).slice(1).map((each) => ({ id: each.id, text: each.content })),
                    answer: answer?.content ?? null,
                    interrupted: answer?.metadata.status === "interrupted",
                    run,
                    usage: run?.usage ?? (answer?.metadata.usage as unknown as Usage | undefined) ?? null,
                    model: typeof answer?.metadata.model === "string" ? answer.metadata.model : "",
                    live: known?.live ?? null,
                    steps: known?.steps ?? null,
                    receipt: known?.receipt ?? "",
                };
                if (!turn.live && !ended) turn.live = this.followed(runId, run);
                return turn;
            });
    }

    private followed(runId: string, run: Run | null = null): Live {
        const live = new Live(runId, {
            ended: () => void this.ended(runId),
            gotMessage: (id) => this.gotMessage(runId, id),
        });
        if (run) live.begin(run);
        live.start();
        return live;
    }

    private async ended(runId: string): Promise<void> {
        const turn = this.turns.find((each) => each.runId === runId);
        if (!turn) return;
        this.announce(`The answer has ended: ${turn.live?.status ?? "unknown"}.`);
        try {
            turn.run = await call<Run>(`runs/${runId}`);
            turn.usage = turn.run.usage;
        } catch {
            turn.usage = turn.live?.usage ?? null;
        }
        this.changed();
        // A message that its agent did not get has become a run of its own.
        if (turn.added.length && this.turns.includes(turn)) await this.open(this.threadId, false);
        await this.loadThreads();
    }

    /** Show a message into a run that another page has sent. */
    private gotMessage(runId: string, id: string): void {
        const turn = this.turns.find((each) => each.runId === runId);
        if (turn && this.pending?.into !== runId && !turn.added.some((each) => each.id === id)) this.readAgain();
    }

    /** Read the open thread again, once for all that has happened in a moment. */
    private readAgain(): void {
        clearTimeout(this.reading);
        this.reading = setTimeout(() => void this.open(this.threadId, false), READ_AGAIN_MS);
    }

    /** Send a message into a run that is under way: its agent gets it before its next request to the model. */
    add(turn: Turn, query: string): void {
        this.ask(query, { into: turn.runId });
    }

    /** Ask in the open thread, or begin one. */
    ask(query: string, how: { replaceFrom?: string; into?: string } = {}): void {
        this.pending = {
            threadKey: newId(),
            runKey: newId(),
            threadId: this.threadId,
            agentType: this.thread?.agent_type ?? this.agentType,
            query,
            into: how.into ?? null,
            replaceFrom: how.replaceFrom ?? null,
            problem: "",
            waiting: true,
        };
        void this.deliver(this.pending);
    }

    /** Ask a query again in its place: it and all after it are taken out of the thread. */
    askAgain(turn: Turn): void {
        const queryId = queryIdOf(turn);
        const at = this.turns.indexOf(turn);
        if (queryId === null || at < 0) return;
        for (const replaced of this.turns.slice(at)) replaced.live?.stop();
        this.turns = this.turns.slice(0, at);
        this.ask(turn.query, { replaceFrom: queryId });
    }

    /** Answer what the run of a turn waits for; raises what `call` does. */
    async answer(turn: Turn, requestId: string, answer: Record<string, Json>): Promise<void> {
        await turn.live?.answer(requestId, answer);
        this.announce("The answer has been sent.");
    }

    /** Send a query until the service has accepted or refused it. */
    async deliver(pending: Pending): Promise<void> {
        pending.problem = "";
        pending.waiting = true;
        for (;;) {
            writeOutbox(pending);
            this.changed();
            try {
                await this.send(pending);
                return;
            } catch (error) {
                if (this.pending !== pending) return;
                pending.problem = messageOf(error);
                const passing = error instanceof Unreachable || (error instanceof Refused && error.status === 503);
                pending.waiting = passing;
                if (!passing) {
                    writeOutbox(pending);
                    this.changed();
                    return;
                }
                const seconds = error instanceof Refused ? error.retryAfterSeconds : null;
                this.changed();
                await pause(Math.max((seconds ?? 0) * 1000, RETRY_MS));
                if (this.pending !== pending) return;
            }
        }
    }

    private async send(pending: Pending): Promise<void> {
        if (pending.into) {
            await this.sendInto(pending.into, pending);
            return;
        }
        const isOpen = pending.threadId === this.threadId;
        if (pending.threadId === null) {
            const body = { agent_type: pending.agentType, title: titleFrom(pending.query) };
            const thread = await call<Thread>("threads", { method: "POST", body, idempotencyKey: pending.threadKey });
            pending.threadId = thread.id;
            writeOutbox(pending);
            if (isOpen) {
                this.threadId = thread.id;
                this.thread = thread;
                history.pushState(null, "", `?thread=${thread.id}`);
            }
            if (!this.shownWords) this.threads = [thread, ...this.threads.filter((each) => each.id !== thread.id)];
        }
        const asked = pending.replaceFrom ? { replace_from: pending.replaceFrom } : { query: pending.query };
        const body = { thread_id: pending.threadId, ...asked };
        const run = await call<Run>("runs", { method: "POST", body, idempotencyKey: pending.runKey });
        this.pending = null;
        writeOutbox(null);
        if (this.threadId === pending.threadId && !this.turns.some((turn) => turn.runId === run.id)) {
            const replaced = pending.replaceFrom ? this.turns.findIndex((turn) => queryIdOf(turn) === pending.replaceFrom) : -1;
            this.turns = [
                ...(replaced < 0 ? this.turns : this.turns.slice(0, replaced)),
                {
                    runId: run.id,
                    queryId: null,
                    query: run.query,
                    added: [],
                    answer: null,
                    interrupted: false,
                    run,
                    usage: null,
                    model: "",
                    live: this.followed(run.id),
                    steps: null,
                    receipt: "",
                },
            ];
        }
        this.changed();
        this.tabs.postMessage("asked");
    }

    private async sendInto(runId: string, pending: Pending): Promise<void> {
        const body = { query: pending.query };
        const sent = await call<SentMessage>(`runs/${runId}/messages`, { method: "POST", body, idempotencyKey: pending.runKey });
        const isNext = sent.status === "queued";
        const turn = this.turns.find((each) => each.runId === sent.run_id);
        if (turn && !isNext && !turn.added.some((each) => each.id === sent.id)) turn.added = [...turn.added, { id: sent.id, text: pending.query }];
        if (isNext && this.threadId === pending.threadId) await this.open(this.threadId, false);
        this.pending = null;
        writeOutbox(null);
        this.announce(isNext ? "The run had ended. The message is asked next." : "The message was sent into the run.");
        this.tabs.postMessage(pending.threadId);
    }

    discard(): void {
        const replaced = this.pending?.replaceFrom;
        this.pending = null;
        writeOutbox(null);
        this.changed();
        if (replaced) void this.open(this.threadId, false);
    }

    /** Cancel a run, and say what became of it. */
    async cancel(turn: Turn): Promise<void> {
        turn.receipt = "Stopping…";
        this.changed();
        try {
            const run = await call<Run>(`runs/${turn.runId}/cancel?wait=10`, { method: "POST" });
            turn.receipt = receiptOf(run);
        } catch (error) {
            turn.receipt = `Not stopped: ${messageOf(error)}`;
        }
        this.announce(turn.receipt);
    }

    async deleteThread(thread: Thread): Promise<void> {
        await this.attempt(async () => {
            await call(`threads/${thread.id}`, { method: "DELETE" });
            this.threads = this.threads.filter((each) => each.id !== thread.id);
            this.tabs.postMessage("deleted");
            if (this.threadId === thread.id) await this.open(null);
        });
    }

    /** Show all that a run has done, or no longer. */
    async toggleSteps(turn: Turn): Promise<void> {
        if (turn.steps) {
            turn.steps = null;
            this.changed();
            return;
        }
        await this.attempt(async () => {
            turn.steps = await readSteps(turn.runId);
        });
    }
}

/** The id of the message that asks, as soon as it is known. */
export function queryIdOf(turn: Turn): string | null {
    return turn.queryId ?? turn.live?.queryId ?? null;
}

export function isUnfinished(status: string): boolean {
    return !["succeeded", "failed", "cancelled"].includes(status);
}

export function titleOf(thread: Thread): string {
    return thread.title ?? `${thread.agent_type}, ${new Date(thread.created_at).toLocaleString()}`;
}

/** Name a thread after its first query; null where that has no text. */
function titleFrom(query: string): string | null {
    const words = query.slice(0, 4 * TITLE_CHARACTERS).replace(/\s+/g, " ").trim();
    return [...words].slice(0, TITLE_CHARACTERS).join("").replace(/\p{Cs}/gu, "\ufffd") || null;
}

function pathOfThreads(words: string): string {
    return `threads?limit=100${words && `&q=${encodeURIComponent(words)}`}`;
}

function receiptOf(run: Run): string {
    if (run.status === "succeeded") return "The answer was complete before it could be stopped.";
    if (run.status === "failed") return "The run failed before it could be stopped.";
    if (run.status !== "cancelled") return "The worker has been asked to stop and has not confirmed it yet.";
    const began = run.started_at ? new Date(run.started_at).getTime() : 0;
    const seconds = began && run.finished_at ? (new Date(run.finished_at).getTime() - began) / 1000 : 0;
    const after = began ? `Stopped after ${seconds.toFixed(1)} s.` : "Stopped before a worker began.";
    return run.partial_output === null ? after : `${after} What was written until then is kept in the thread.`;
}

function threadOfAddress(): string | null {
    return new URLSearchParams(location.search).get("thread");
}

function readOutbox(): Pending | null {
    try {
        return JSON.parse(sessionStorage.getItem(OUTBOX) ?? "null") as Pending | null;
    } catch {
        return null;
    }
}

function writeOutbox(pending: Pending | null): void {
    if (pending) sessionStorage.setItem(OUTBOX, JSON.stringify(pending));
    else sessionStorage.removeItem(OUTBOX);
}
