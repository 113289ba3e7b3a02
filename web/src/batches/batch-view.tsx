import { useEffect, useRef, useState } from "preact/hooks";

import { call, messageOf } from "../shared/api.ts";
import { DRAFT } from "../shared/draft.ts";
import { counted } from "../shared/format.ts";
import { LongText } from "../shared/markdown.tsx";
import { Output } from "../shared/output.tsx";
import type { Batch, Run, Schema } from "../shared/types.ts";
import { nameOf } from "./app.tsx";
import { resultsAsCsv, save } from "./download.ts";
import { WaitingRuns } from "./waiting-runs.tsx";
import { ResultsTable } from "./results-table.tsx";
import type { Store } from "./store.ts";

/** A batch: how far it is, its results, and what can be done with it. */
export function BatchView({ store }: { store: Store }) {
    const { batch } = store;
    const [status, setStatus] = useState("");
    const [words, setWords] = useState("");
    const [opened, setOpened] = useState<string | null>(null);
    const [saving, setSaving] = useState(false);
    if (!batch) return <p class="none loading">Loading the batch…</p>;
    const { counts } = batch;
    const ended = counts.succeeded + counts.failed + counts.cancelled;
    const over = batch.finished_at !== null;
    const name = nameOf(batch).replace(/\.[a-z]+$/i, "");
    const lower = words.toLowerCase();
    const shown =
        status || lower
            ? store.results.filter(
                  (result) => (!status || result.status === status) && (!lower || `${result.customId} ${result.summary}`.toLowerCase().includes(lower)),
              )
            : store.results;
    return (
        <div class="batch" data-status={batch.status}>
            <header>
                <h1 dir="auto">{nameOf(batch)}</h1>
                <div class="actions">
                    {!over && (
                        <button type="button" disabled={batch.status === "cancelling"} onClick={() => void store.cancel()}>
                            Cancel
                        </button>
                    )}
                    {over && counts.failed > 0 && (
                        <button type="button" onClick={() => void store.retry()}>
                            Retry {counts.failed.toLocaleString()} failed
                        </button>
                    )}
                    <button
                        type="button"
                        disabled={saving || !ended}
                        onClick={() => {
                            setSaving(true);
                            void store
                                .act(async () => save(await resultsAsCsv(batch.id, store.agent?.output_schema ?? {}), `${name}.results.csv`))
                                .then(() => setSaving(false));
                        }}
                    >
                        {saving ? "Reading…" : "Download CSV"}
                    </button>
                    <a class="button" href={`api/v1/batches/${batch.id}/results`} download={`${name}.results.jsonl`}>
                        Download JSON lines
                    </a>
                </div>
            </header>
            <progress max={counts.total} value={ended} aria-label="Progress" />
            <p class="counts" role="status">
                {standing(batch, ended, store)}
            </p>
            {!store.connected && !over && <p class="note">The connection was lost. The batch goes on at the service.</p>}
            {!over && counts.waiting > 0 && <WaitingRuns batchId={batch.id} count={counts.waiting} />}
            <div class="filters">
                <label>
                    Status
                    <select value={status} onChange={(event) => setStatus(event.currentTarget.value)}>
                        <option value="">all</option>
                        <option value="succeeded">succeeded</option>
                        <option value="failed">failed</option>
                        <option value="cancelled">cancelled</option>
                    </select>
                </label>
                <label>
                    Filter
                    <input type="search" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
                </label>
                <span class="detail">{counted(shown.length, "result")}</span>
            </div>
            {shown.length ? <ResultsTable results={shown} onOpen={setOpened} /> : <p class="none">{whyEmpty(store.results.length, over)}</p>}
            {opened && <RunDialog runId={opened} schema={store.agent?.output_schema ?? {}} onClose={() => setOpened(null)} />}
        </div>
    );
}

/** Say why no result is shown. */
function whyEmpty(results: number, over: boolean): string {
    if (results) return "No result fits the filter.";
    return over ? "There are no results." : "Results appear here as runs end.";
}

function standing(batch: Batch, ended: number, store: Store): string {
    const { counts } = batch;
    const parts = [
        batch.status.replace("_", " "),
        `${ended.toLocaleString()} of ${counts.total.toLocaleString()}`,
        `${counts.succeeded.toLocaleString()} succeeded`,
        `${counts.failed.toLocaleString()} failed`,
    ];
    if (counts.cancelled) parts.push(`${counts.cancelled.toLocaleString()} cancelled`);
    if (counts.waiting) parts.push(`${counts.waiting.toLocaleString()} ${counts.waiting === 1 ? "waits" : "wait"} for answers`);
    if (batch.finished_at === null) {
        parts.push(`${counts.running.toLocaleString()} running`);
        const { rate } = store;
        if (rate) parts.push(`${rate.toFixed(1)} a second`, `about ${duration((counts.total - ended) / rate)} left`);
        if (batch.served === false) parts.push("no worker serves this agent now");
    } else {
        parts.push(`took ${duration((new Date(batch.finished_at).getTime() - new Date(batch.created_at).getTime()) / 1000)}`);
    }
    return parts.join(" · ");
}

function duration(seconds: number): string {
    if (seconds < 90) return `${Math.ceil(seconds)} s`;
    if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3_600).toFixed(1)} h`;
}

/** One run of the batch. */
function RunDialog({ runId, schema, onClose }: { runId: string; schema: Schema; onClose: () => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    const [run, setRun] = useState<Run | null>(null);
    const [problem, setProblem] = useState("");
    useEffect(() => {
        dialog.current?.showModal();
        call<Run>(`runs/${runId}`).then(setRun, (error: unknown) => setProblem(messageOf(error)));
    }, [runId]);
    return (
        <dialog ref={dialog} class="run" aria-labelledby="run-title" onClose={onClose}>
            <h2 id="run-title">{run?.custom_id ?? "Result"}</h2>
            {problem && <p class="failure">{problem}</p>}
            {run && (
                <>
                    <h3>Query</h3>
                    <LongText text={run.query} />
                    <h3>Answer</h3>
                    {run.error ? (
                        <p class="failure">
                            <strong>{run.error.code}</strong> {run.error.message}
                        </p>
                    ) : (
                        <Output value={run.output ?? run.partial_output} schema={schema} growing={false} />
                    )}
                </>
            )}
            <div class="choices">
                {run && (
                    <button
                        type="button"
                        onClick={() => {
                            sessionStorage.setItem(DRAFT, JSON.stringify({ agentType: run.agent_type, query: run.query }));
                            location.assign("./");
                        }}
                    >
                        Open as a chat
                    </button>
                )}
                <button type="button" class="primary" onClick={() => dialog.current?.close()}>
                    Close
                </button>
            </div>
        </dialog>
    );
}
