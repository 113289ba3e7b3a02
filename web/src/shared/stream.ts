// Follow a run to its end, whatever happens to the connection in between.

import { openStream, pause, Refused } from "./api.ts";
import { parseJson } from "./json.ts";
import type { StreamEvent } from "./types.ts";

/** A stream that has been silent for this long is taken for dead; the service sends an empty line every 15 s. */
const SILENCE_MS = 45_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;

export interface Follower {
    event(event: StreamEvent): void;
    /** Whether events arrive; false while the stream is being opened again. */
    connected(connected: boolean): void;
    /** The service has forgotten where this follower was: everything is told again. */
    restarted(): void;
}

/** Follow a run from its beginning. Returns once it has ended and everything was told, or the signal aborts. */
export async function follow(runId: string, follower: Follower, signal: AbortSignal): Promise<void> {
    let after = "";
    let wait = FIRST_PAUSE_MS;
    while (!signal.aborted) {
        const connection = new AbortController();
        const stop = () => connection.abort();
        signal.addEventListener("abort", stop);
        addEventListener("offline", stop);
        try {
            const cursor = after && `&after=${encodeURIComponent(after)}`;
            const response = await openStream(`runs/${runId}/stream?deltas=true${cursor}`, connection.signal);
            follower.connected(true);
            for await (const event of linesOf<StreamEvent>(response, connection)) {
                wait = FIRST_PAUSE_MS;
                after = event.id;
                follower.event(event);
                if (event.event === "done") return;
            }
        } catch (error) {
            if (signal.aborted) return;
            if (error instanceof Refused) {
                if (error.status === 401 || error.status === 403 || error.status === 404) throw error;
                if (error.status === 400 && after) {
                    after = "";
                    follower.restarted();
                }
                wait = Math.max(wait, (error.retryAfterSeconds ?? 0) * 1000);
            }
        } finally {
            signal.removeEventListener("abort", stop);
            removeEventListener("offline", stop);
        }
        follower.connected(false);
        await pause(wait * (0.75 + Math.random() / 2), signal);
        wait = Math.min(wait * 2, LONGEST_PAUSE_MS);
    }
}

/** Read a response of JSON lines; silence or leaving the loop ends its connection. */
export async function* linesOf<Line>(response: Response, connection: AbortController): AsyncGenerator<Line> {
    if (!response.body) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let watchdog = setTimeout(() => connection.abort(), SILENCE_MS);
    let pieces: string[] = [];
    try {
        for (;;) {
            const { value, done } = await reader.read();
            if (done) return;
            clearTimeout(watchdog);
            watchdog = setTimeout(() => connection.abort(), SILENCE_MS);
            const lines = value.split("\n");
            for (const [index, piece] of lines.entries()) {
                pieces.push(piece);
                if (index === lines.length - 1) break;
                const line = pieces.join("");
                pieces = [];
                if (line.trim()) yield parseJson(line) as Line;
            }
        }
    } finally {
        clearTimeout(watchdog);
        connection.abort();
    }
}
