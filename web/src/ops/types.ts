// What the service streams to this page.

export type Column = (number | null)[];

/** The columns of the plots of a window: a value for each point, null where nothing is known. */
export interface Plots {
    at: number[];
    ended: Record<string, Column>;
    agents: Record<string, Column>;
    tokens: Column;
    pick_up: Record<string, Column>;
    queued: Record<string, Column>;
    oldest: Record<string, Column>;
    streams: Column;
    failures: Failures[];
}

/** Failed runs of one agent with one code; the run and the message are of the last. */
export interface Failures {
    code: string;
    agent: string;
    runs: number;
    run_id: string | null;
    message: string | null;
}

export type Window = "15m" | "3h" | "1d";
export const WINDOWS: Record<Window, string> = { "15m": "15 minutes", "3h": "3 hours", "1d": "A day" };
export type History = Record<Window, Plots>;
export type Percentiles = Record<"p50" | "p95" | "p99", number | null>;

/** Id, host, process, pool, version, slots, runs, whether it drains, when it started, seconds since its heartbeat. */
export type Worker = [string, string, number, string, string, number, number, boolean, number, number];
/** Id, host, process, version, open calls, when it started, seconds since its heartbeat. */
export type ApiProcess = [string, string, number, string, number, number, number];
/** Id, tenant, receiver, type, status, attempts, status of the last response, error, seconds until the next attempt. */
export type Delivery = [string, string, string, string, string, number, number | null, string | null, number];

/** The service as it is. Rates are of the last minute. */
export interface Now {
    at: number;
    /** Pool, lane, status, runs, age of the oldest in seconds. */
    queues: [string, string, string, number, number][];
    streams: number;
    workers: Worker[];
    processes: ApiProcess[];
    deliveries: Delivery[];
    ended: Record<string, number>;
    agents: Record<string, Record<string, number>>;
    tokens: number;
    pick_up: Record<string, Percentiles>;
    failures: Failures[];
}

export interface DeadLetter {
    run_id: string;
    tenant: string;
    agent_type: string;
    error: { code: string; message: string };
    attempt: number;
    crashes: number;
    finished_at: string;
}

export interface Requeued {
    run_id: string;
    outcome: "requeued" | "already_requeued" | "not_found" | "unknown_agent";
    requeued_as: string | null;
}

export interface Story {
    run_id: string;
    tenant: string;
    agent_type: string;
    queue: string;
    status: string;
    attempt: number;
    crashes: number;
    worker: string | null;
    retry_of: string | null;
    requeued_as: string | null;
    deadline_at: string;
    error: { code: string; message: string } | null;
    usage: Record<string, number>;
    log_kept: boolean;
    moments: { what: string; at: string | null; detail: string }[];
}
