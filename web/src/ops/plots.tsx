import { useMemo } from "preact/hooks";

import { number, seconds } from "../shared/format.ts";
import type { Line } from "./plot.tsx";
import { Plot } from "./plot.tsx";
import type { Store } from "./store.ts";
import type { Column, History, Now, Plots, Window } from "./types.ts";
import { WINDOWS } from "./types.ts";

/** The plots. That of 15 minutes ends at this moment, the others at their last whole step. */
export function AllPlots({ store, now, history }: { store: Store; now: Now; history: History }) {
    const plots = useMemo(() => (store.window === "15m" ? withNow(history["15m"], now) : history[store.window]), [store.window, history, store.window === "15m" && now]);
    return (
        <section aria-labelledby="plots">
            <div class="heading">
                <h2 id="plots">Over time</h2>
                <fieldset class="kinds">
                    <legend class="unseen">Window</legend>
                    {(Object.keys(WINDOWS) as Window[]).map((window) => (
                        <label key={window}>
                            <input type="radio" name="window" checked={store.window === window} onChange={() => store.show(window)} /> {WINDOWS[window]}
                        </label>
                    ))}
                </fieldset>
            </div>
            <div class="plots">
                <Each title="Runs a minute, by outcome" at={plots.at} columns={plots.ended} format={number} />
                <Each title="Runs a minute, by agent" at={plots.at} columns={plots.agents} format={number} />
                <Each title="Pick-up, interactive" at={plots.at} columns={plots.pick_up} format={seconds} />
                <Each title="Queued" at={plots.at} columns={plots.queued} format={number} />
                <Each title="Age of the oldest queued run" at={plots.at} columns={plots.oldest} format={seconds} />
                <Each title="Tokens a second" at={plots.at} columns={{ tokens: plots.tokens }} format={number} />
                <Each title="Open streams" at={plots.at} columns={{ streams: plots.streams }} format={number} />
            </div>
        </section>
    );
}

function Each({ title, at, columns, format }: { title: string; at: number[]; columns: Record<string, Column>; format: (value: number) => string }) {
    const lines: Line[] = useMemo(() => Object.entries(columns).map(([label, values]) => ({ label, values })), [columns]);
    return <Plot title={title} at={at} lines={lines} format={format} />;
}

/** Add the last minute, as it is now, to what was recorded of the minutes before; the newest may not be recorded yet. */
function withNow(recorded: Plots, now: Now): Plots {
    const points = recorded.tokens.findLastIndex((value) => value !== null) + 1;
    const plots = points ? upTo(recorded, points) : recorded;
    const queued = (lane: string) => now.queues.filter((queue) => queue[1] === lane && queue[2] === "queued");
    const add = (columns: Record<string, Column>, value: (name: string) => number | null) =>
        Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, [...column, value(name)]]));
    const total = (ended: Record<string, number> | undefined) => Object.values(ended ?? {}).reduce((sum, runs) => sum + runs, 0);
    const known = Object.keys(plots.agents);
    const unknown = Object.keys(now.agents).filter((agent) => !known.includes(agent));
    const agents = { ...plots.agents };
    if (!agents.others) for (const agent of unknown.splice(0, 7 - known.length)) agents[agent] = plots.at.map(() => null);
    return {
        ...plots,
        at: [...plots.at, now.at],
        ended: add(plots.ended, (status) => now.ended[status] ?? 0),
        agents: add(agents, (agent) => (agent === "others" ? unknown.reduce((sum, name) => sum + total(now.agents[name]), 0) : total(now.agents[agent]))),
        tokens: [...plots.tokens, now.tokens],
        pick_up: add(plots.pick_up, (name) => now.pick_up.interactive?.[name as "p50"] ?? null),
        queued: add(plots.queued, (lane) => queued(lane).reduce((sum, queue) => sum + queue[3], 0)),
        oldest: add(plots.oldest, (lane) => Math.max(0, ...queued(lane).map((queue) => queue[4]))),
        streams: [...plots.streams, now.streams],
    };
}

/** Cut all columns to so many points. */
function upTo(plots: Plots, points: number): Plots {
    const cut = (columns: Record<string, Column>) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column.slice(0, points)]));
    return {
        ...plots,
        at: plots.at.slice(0, points),
        ended: cut(plots.ended),
        agents: cut(plots.agents),
        tokens: plots.tokens.slice(0, points),
        pick_up: cut(plots.pick_up),
        queued: cut(plots.queued),
        oldest: cut(plots.oldest),
        streams: plots.streams.slice(0, points),
    };
}
