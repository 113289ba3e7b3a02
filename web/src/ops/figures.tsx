import { number, seconds } from "../shared/format.ts";
import type { Now } from "./types.ts";

/** Seconds without a heartbeat after which a process is called silent. */
export const SILENT_SECONDS = 12;

/** The service in a few numbers. */
export function Figures({ now }: { now: Now }) {
    const runs = (status: string, lane?: string) =>
        now.queues.filter((queue) => queue[2] === status && (lane === undefined || queue[1] === lane)).reduce((sum, queue) => sum + queue[3], 0);
    const oldest = Math.max(0, ...now.queues.filter((queue) => queue[2] === "queued").map((queue) => queue[4]));
    const slots = now.workers.filter((worker) => worker[9] <= SILENT_SECONDS && !worker[7]);
    const { p50, p95, p99 } = now.pick_up.interactive ?? { p50: null, p95: null, p99: null };
    const waiting = runs("waiting");
    return (
        <dl class="figures" aria-label="Now">
            <Figure name="Queued" value={number(runs("queued"))} detail={`${number(runs("queued", "interactive"))} interactive, ${number(runs("queued", "batch"))} batch`} />
            <Figure name="Age of the oldest" value={runs("queued") ? seconds(oldest) : "—"} detail="queued" />
            <Figure
                name="Running"
                value={number(runs("running"))}
                detail={`of ${number(slots.reduce((sum, worker) => sum + worker[5], 0))} slots${waiting ? `, ${number(waiting)} wait for an answer` : ""}`}
            />
            <Figure name="Pick-up, median" value={time(p50)} detail={`p95 ${time(p95)}, p99 ${time(p99)}`} />
            <Figure
                name="Ended in the last minute"
                value={number(Object.values(now.ended).reduce((sum, ended) => sum + ended, 0))}
                detail={`${number(now.ended.failed ?? 0)} failed, ${number(now.ended.cancelled ?? 0)} cancelled`}
            />
            <Figure name="Tokens a second" value={number(now.tokens)} detail="of runs that ended" />
            <Figure name="Open streams" value={number(now.streams)} detail={`at ${now.processes.length === 1 ? "1 API process" : `${number(now.processes.length)} API processes`}`} />
            <Figure name="Workers" value={number(slots.length)} detail={`${number(now.workers.length - slots.length)} draining or silent`} />
        </dl>
    );
}

function Figure({ name, value, detail }: { name: string; value: string; detail: string }) {
    return (
        <div class="figure">
            <dt>{name}</dt>
            <dd>
                <strong>{value}</strong> <span class="detail">{detail}</span>
            </dd>
        </div>
    );
}

export function time(value: number | null): string {
    return value === null ? "—" : seconds(value);
}
