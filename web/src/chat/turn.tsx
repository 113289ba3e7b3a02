import { useEffect, useRef, useState } from "preact/hooks";

import { parseJson } from "../shared/json.ts";
import { LongText, Markdown } from "../shared/markdown.tsx";
import { Output } from "../shared/output.tsx";
import { Requests } from "../shared/requests.tsx";
import type { Json, Schema, Usage } from "../shared/types.ts";
import { AddedMessages, Query } from "./added.tsx";
import { Attempts } from "./attempts.tsx";
import { useLive } from "./live.ts";
import { Snippets } from "./snippets.tsx";
import { AllSteps, LiveSteps } from "./steps.tsx";
import type { Pending, Store, Turn } from "./store.ts";
import { isUnfinished, queryIdOf } from "./store.ts";
import { Thoughts } from "./thoughts.tsx";
import { UsageLine } from "./usage.tsx";

/** A query and its answer. */
export function TurnView({ turn, schema, store }: { turn: Turn; schema: Schema; store: Store }) {
    const { live } = turn;
    useLive(live);
    const [raw, setRaw] = useState(false);
    const [shown, setShown] = useState(false);
    const [sure, setSure] = useState(false);
    const status = live?.running || !turn.run ? (live?.status ?? turn.run?.status ?? "succeeded") : turn.run.status;
    const unfinished = isUnfinished(status) && !(live && !live.running);
    const state = live && !live.running && isUnfinished(status) ? live.status : status;
    const value = valueOf(turn, schema);
    useEffect(() => {
        if (state === "waiting") store.announce("The agent waits for an answer.");
    }, [state]);
    const later = store.turns.length - 1 - store.turns.indexOf(turn);
    const error = turn.run?.error ?? live?.error ?? null;
    return (
        <article class="turn" data-run={turn.runId} data-status={state}>
            <h2 class="unseen">Query</h2>
            <Query text={turn.query} />
            <AddedMessages added={turn.added} live={live} unfinished={unfinished} />
            <h2 class="unseen">Answer</h2>
            <div class="answer">
                {live && <Attempts live={live} />}
                {live && !turn.steps && <Thoughts live={live} />}
                {turn.steps ? <AllSteps stored={turn.steps} /> : live && <LiveSteps live={live} />}
                {live?.gap && <p class="note">Some steps of this run are not kept any more.</p>}
                {value !== undefined && (raw ? <Raw value={value} /> : <Answer value={value} schema={schema} growing={unfinished} />)}
                <Requests
                    requests={live?.requests.length ? live.requests : (turn.run?.requests ?? [])}
                    status={state}
                    send={(requestId, answer) => store.answer(turn, requestId, answer)}
                />
                {unfinished && <Progress turn={turn} />}
                {state === "failed" && (
                    <p class="failure" role="alert">
                        <strong>{error?.code ?? "failed"}</strong> {error?.message}
                    </p>
                )}
                {state === "cancelled" && !turn.receipt && <p class="note">This run was cancelled.</p>}
                {turn.receipt && <p class="note receipt">{turn.receipt}</p>}
                {live?.trouble && <p class="failure">{live.trouble}</p>}
                <footer class="actions">
                    {unfinished ? (
                        <button type="button" onClick={() => void store.cancel(turn)} disabled={turn.receipt === "Stopping…"}>
                            Stop
                        </button>
                    ) : (
                        <button type="button" class="quiet" disabled={store.pending !== null || queryIdOf(turn) === null} onClick={() => (later ? setSure(true) : store.askAgain(turn))}>
                            Ask again
                        </button>
                    )}
                    {value !== undefined && typeof value !== "string" && (
                        <button type="button" class="quiet" aria-pressed={raw} onClick={() => setRaw(!raw)}>
                            JSON
                        </button>
                    )}
                    <button type="button" class="quiet" onClick={() => setShown(true)}>
                        Code
                    </button>
                    {!unfinished && hasSteps(turn.usage) && (
                        <button type="button" class="quiet" aria-expanded={turn.steps !== null} onClick={() => void store.toggleSteps(turn)}>
                            Steps
                        </button>
                    )}
                    {!unfinished && <UsageLine usage={turn.usage} run={turn.run} model={turn.model} />}
                </footer>
            </div>
            {shown && store.agent && <Snippets agentType={store.agent.agent_type} query={turn.query} onClose={() => setShown(false)} />}
            {sure && (
                <ReplaceDialog
                    later={later}
                    onClose={(replace) => {
                        setSure(false);
                        if (replace) store.askAgain(turn);
                    }}
                />
            )}
        </article>
    );
}

/** Whether a run has done more than answer at once. */
function hasSteps(usage: Usage | null): boolean {
    return usage !== null && (usage.requests > 1 || (usage.tool_calls ?? 0) > 0);
}

/** What comes after a query that is asked again is taken out of the thread: not without being asked. */
function ReplaceDialog({ later, onClose }: { later: number; onClose: (replace: boolean) => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    useEffect(() => dialog.current?.showModal(), []);
    const what = later === 1 ? "The query after it, with its answer, is" : `The ${later} queries after it, with their answers, are`;
    return (
        <dialog ref={dialog} aria-labelledby="replace-title" onClose={() => onClose(dialog.current?.returnValue === "replace")}>
            <form method="dialog">
                <h2 id="replace-title">Ask this again?</h2>
                <p>{what} taken out of the thread.</p>
                <div class="choices">
                    <button value="keep">Keep them</button>
                    <button value="replace" class="danger">
                        Ask again
                    </button>
                </div>
            </form>
        </dialog>
    );
}

/** A query that the service has not accepted yet. */
export function PendingTurn({ pending, store }: { pending: Pending; store: Store }) {
    return (
        <article class="turn" data-status="pending">
            <h2 class="unseen">{pending.into ? "Message to the run" : "Query"}</h2>
            <Query text={pending.query} />
            <div class="answer">
                {pending.problem ? (
                    <p class={pending.waiting ? "note" : "failure"} role="alert">
                        {pending.problem} {pending.waiting && "It is sent again until it arrives; it will not be asked twice."}
                    </p>
                ) : (
                    <p class="note">Sending…</p>
                )}
                {pending.problem && (
                    <footer class="actions">
                        {!pending.waiting && (
                            <button type="button" onClick={() => void store.deliver(pending)}>
                                Send again
                            </button>
                        )}
                        <button type="button" class="quiet" onClick={() => store.discard()}>
                            Discard
                        </button>
                    </footer>
                )}
            </div>
        </article>
    );
}

function Answer({ value, schema, growing }: { value: Json; schema: Schema; growing: boolean }) {
    return typeof value === "string" && isText(schema) ? <Markdown text={value} /> : <Output value={value} schema={schema} growing={growing} />;
}

function Raw({ value }: { value: Json }) {
    return <LongText text={JSON.stringify(value, null, 2)} />;
}

/** What the run waits for. */
function Progress({ turn }: { turn: Turn }) {
    const { live } = turn;
    if (!live) return null;
    if (!live.connected) {
        const offline = navigator.onLine ? "The connection was lost." : "This device is offline.";
        return <p class="progress">{offline} The answer goes on at the service and is shown as soon as it is reached again.</p>;
    }
    if (live.status === "waiting") return <p class="progress">The run waits, also when this page is closed.</p>;
    if (live.status === "running") return <p class="progress working">{live.text === null ? "Thinking" : "Writing"}</p>;
    const place = live.queuePosition;
    const before = place === null ? "Waiting for a worker" : place === 0 ? "Next in the queue" : `${place} ${place === 1 ? "run is" : "runs are"} before it in the queue`;
    return (
        <p class="progress working">
            {before}
            {live.served === false && ". No worker serves this agent now"}
        </p>
    );
}

/** The newest value of an answer, or undefined where there is none yet. */
function valueOf(turn: Turn, schema: Schema): Json | undefined {
    const { live, run } = turn;
    const text = live?.text ?? (live?.running ? null : turn.answer);
    if (text !== null && text !== undefined) return parsed(text, schema);
    if (live?.running) return undefined;
    return run?.output ?? run?.partial_output ?? undefined;
}

function parsed(text: string, schema: Schema): Json {
    if (isText(schema)) return text;
    try {
        return parseJson(text);
    } catch {
        return text;
    }
}

function isText(schema: Schema): boolean {
    return schema.type === "string";
}
