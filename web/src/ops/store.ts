// What the operations page knows: the stream of the service, and the dead letters that were read.

import { call, messageOf, pause, read, Refused } from "../shared/api.ts";
import type { Page } from "../shared/types.ts";
import type { DeadLetter, History, Now, Requeued, Window } from "./types.ts";

const STREAM = "console/operations";
/** The service sends something at least this often; a stream that is silent for longer is opened again. */
const SILENCE_MS = 45_000;
const RETRY_MS = 2_000;
const SHOWN_LETTERS = 50;
const LETTERS_A_CALL = 100;

export class Store {
    now: Now | null = null;
    history: History | null = null;
    connected = true;
    trouble = "";
    notice = "";
    window: Window = "15m";
    runId: string | null = null;
    letters: DeadLetter[] = [];
    moreLetters: string | null = null;
    lettersRead = false;
    code = "";
    selected = new Set<string>();
    requeueing = false;
    private failures = "";
    private reading = 0;
    private readonly listeners = new Set<() => void>();

    listen(listener: () => void): () => void {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    }

    changed(): void {
        for (const listener of this.listeners) listener();
    }

    async start(): Promise<void> {
        addEventListener("popstate", () => this.openRun(runOfAddress(), false));
        this.openRun(runOfAddress(), false);
        void this.readLetters();
        for (;;) {
            await this.follow();
            this.connected = false;
            this.changed();
            await pause(RETRY_MS);
            // A stream does not say why it was refused. Without a session, this opens the page to sign in.
            await read("console/operator-session").catch(() => undefined);
        }
    }

    /** Follow the stream until it breaks. */
    private follow(): Promise<void> {
        return new Promise((resolve) => {
            const source = new EventSource(STREAM);
            const end = () => {
                clearTimeout(watchdog);
                source.close();
                resolve();
            };
            let watchdog = setTimeout(end, SILENCE_MS);
            const take = (name: string, use: (data: string) => void) =>
                source.addEventListener(name, (event: MessageEvent<string>) => {
                    clearTimeout(watchdog);
                    watchdog = setTimeout(end, SILENCE_MS);
                    this.connected = true;
                    use(event.data);
                    this.changed();
                });
            take("now", (data) => {
                this.now = JSON.parse(data) as Now;
                this.trouble = "";
                this.noticeFailures(this.now);
            });
            take("history", (data) => {
                this.history = JSON.parse(data) as History;
            });
            take("trouble", (data) => {
                this.trouble = (JSON.parse(data) as { detail: string }).detail;
            });
            source.onerror = end;
        });
    }

    /** Read the dead letters again once more runs have failed. */
    private noticeFailures(now: Now): void {
        const failures = JSON.stringify(Object.values(now.agents).map((ended) => ended.failed ?? 0));
        if (failures !== this.failures && this.failures && this.letters.length <= SHOWN_LETTERS && !this.requeueing) void this.readLetters();
        this.failures = failures;
    }

    show(window: Window): void {
        this.window = window;
        this.changed();
    }

    openRun(runId: string | null, remember = true): void {
        if (remember) history.pushState(null, "", runId ? `?run=${encodeURIComponent(runId)}` : location.pathname);
        this.runId = runId;
        this.changed();
    }

    choose(code: string): void {
        this.code = code;
        this.selected = new Set();
        void this.readLetters();
    }

    select(runIds: string[], selected: boolean): void {
        this.selected = new Set(selected ? [...this.selected, ...runIds] : [...this.selected].filter((id) => !runIds.includes(id)));
        this.changed();
    }

    /** Read the dead letters of the chosen code, the last first: those at the beginning, or more. */
    async readLetters(more = false): Promise<void> {
        const reading = ++this.reading;
        try {
            const page = await this.page(SHOWN_LETTERS, more ? this.moreLetters : null);
            if (reading !== this.reading) return;
            this.letters = more ? [...this.letters, ...page.items] : page.items;
            this.moreLetters = page.next_cursor;
            this.lettersRead = true;
            const known = new Set(this.letters.map((letter) => letter.run_id));
            this.selected = new Set([...this.selected].filter((id) => known.has(id)));
        } catch (error) {
            if (!(error instanceof Refused && error.status === 401)) this.notice = messageOf(error);
        }
        this.changed();
    }

    private async page(limit: number, cursor: string | null): Promise<Page<DeadLetter>> {
        const query = new URLSearchParams({ limit: String(limit) });
        if (this.code) query.set("code", this.code);
        if (cursor) query.set("cursor", cursor);
        return await call<Page<DeadLetter>>(`operator/dead-letters?${query}`);
    }

    /** Have these asked again. */
    async requeue(runIds: string[]): Promise<void> {
        await this.requeueing_(async (count) => {
            for (let first = 0; first < runIds.length; first += LETTERS_A_CALL) count(await requeue(runIds.slice(first, first + LETTERS_A_CALL)));
        });
    }

    /** Have all dead letters of the chosen code asked again, page by page; those that die meanwhile are not among them. */
    async requeueAll(): Promise<void> {
        await this.requeueing_(async (count) => {
            let cursor: string | null = null;
            do {
                const page: Page<DeadLetter> = await this.page(LETTERS_A_CALL, cursor);
                if (page.items.length) count(await requeue(page.items.map((letter) => letter.run_id)));
                cursor = page.next_cursor;
            } while (cursor);
        });
    }

    private async requeueing_(work: (count: (items: Requeued[]) => void) => Promise<void>): Promise<void> {
        const outcomes = new Map<string, number>();
        this.requeueing = true;
        this.notice = "";
        this.changed();
        try {
            await work((items) => {
                for (const { outcome } of items) outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
                this.notice = said(outcomes);
                this.changed();
            });
        } catch (error) {
            this.notice = [said(outcomes), messageOf(error)].filter(Boolean).join(" ");
        }
        this.requeueing = false;
        this.selected = new Set();
        await this.readLetters();
    }
}

async function requeue(runIds: string[]): Promise<Requeued[]> {
    return (await call<{ items: Requeued[] }>("operator/dead-letters/requeue", { method: "POST", body: { run_ids: runIds } })).items;
}

const OUTCOMES: Record<string, string> = {
    requeued: "requeued",
    already_requeued: "requeued before",
    not_found: "no dead letters any more",
    unknown_agent: "not requeued: no worker has registered their agent",
};

function said(outcomes: Map<string, number>): string {
    return [...outcomes].map(([outcome, runs]) => `${runs.toLocaleString()} ${OUTCOMES[outcome] ?? outcome}.`).join(" ");
}

function runOfAddress(): string | null {
    return new URLSearchParams(location.search).get("run");
}
