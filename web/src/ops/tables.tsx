import type { ComponentChildren } from "preact";

import { SILENT_SECONDS, time } from "./figures.tsx";
import { number, seconds } from "../shared/format.ts";
import type { Store } from "./store.ts";
import type { ApiProcess, Delivery, Failures, History, Now, Worker } from "./types.ts";
import { WINDOWS } from "./types.ts";

/** A table with a heading, which scrolls for itself. */
export function Table({ id, title, heads, none, children }: { id: string; title: string; heads: string[]; none: string; children: ComponentChildren[] }) {
    return (
        <section aria-labelledby={id}>
            <h2 id={id}>{title}</h2>
            {children.length ? (
                <div class="scrolls tall" tabindex={0} role="region" aria-labelledby={id}>
                    <table>
                        <thead>
                            <tr>
                                {heads.map((head) => (
                                    <th key={head} scope="col">
                                        {head}
                                    </th>
                                ))}
                            </tr>
                        </thead>
                        <tbody>{children}</tbody>
                    </table>
                </div>
            ) : (
                <p class="none">{none}</p>
            )}
        </section>
    );
}

export function Workers({ workers }: { workers: Worker[] }) {
    const heads = ["Host", "Process", "Pool", "Version", "Slots used", "Heartbeat", "State", "Running for"];
    return (
        <Table id="workers" title={`Workers (${number(workers.length)})`} heads={heads} none="No worker is registered: runs wait until one starts.">
            {workers.map(([id, host, pid, pool, version, slots, used, draining, started, heartbeat]) => (
                <tr key={id}>
                    <td>{host}</td>
                    <td>{pid}</td>
                    <td>{pool}</td>
                    <td>{version}</td>
                    <td>
                        {used} of {slots}
                    </td>
                    <td>{seconds(Math.max(0, heartbeat))} ago</td>
                    <td>{heartbeat > SILENT_SECONDS ? <span class="badge warn">silent</span> : draining ? <span class="badge">draining</span> : <span class="badge yes">takes runs</span>}</td>
                    <td>{seconds(Math.max(0, Date.now() / 1000 - started))}</td>
                </tr>
            ))}
        </Table>
    );
}

export function Processes({ processes }: { processes: ApiProcess[] }) {
    const heads = ["Host", "Process", "Version", "Open streams", "Heartbeat", "Running for"];
    return (
        <Table id="processes" title={`API processes (${number(processes.length)})`} heads={heads} none="None has written that it lives.">
            {processes.map(([id, host, pid, version, streams, started, heartbeat]) => (
                <tr key={id}>
                    <td>{host}</td>
                    <td>{pid}</td>
                    <td>{version}</td>
                    <td>{number(streams)}</td>
                    <td>
                        {seconds(Math.max(0, heartbeat))} ago {heartbeat > SILENT_SECONDS && <span class="badge warn">silent</span>}
                    </td>
                    <td>{seconds(Math.max(0, Date.now() / 1000 - started))}</td>
                </tr>
            ))}
        </Table>
    );
}

export function Queues({ now }: { now: Now }) {
    const rows = [...now.queues].sort((a, b) => a.slice(0, 3).join().localeCompare(b.slice(0, 3).join()));
    return (
        <Table id="queues" title="Queues" heads={["Pool", "Queue", "Status", "Runs", "Oldest", "Pick-up p50, p95, p99"]} none="No run is queued or running.">
            {rows.map(([pool, lane, status, runs, oldest]) => {
                const pickUp = now.pick_up[lane];
                return (
                    <tr key={`${pool} ${lane} ${status}`}>
                        <td>{pool}</td>
                        <td>{lane}</td>
                        <td>{status}</td>
                        <td>{number(runs)}</td>
                        <td>{seconds(oldest)}</td>
                        <td>{pickUp ? `${time(pickUp.p50)}, ${time(pickUp.p95)}, ${time(pickUp.p99)}` : "—"}</td>
                    </tr>
                );
            })}
        </Table>
    );
}

export function Agents({ agents }: { agents: Now["agents"] }) {
    return (
        <Table id="agents" title="Agents, last minute" heads={["Agent", "Succeeded", "Failed", "Cancelled"]} none="No run has ended in the last minute.">
            {Object.entries(agents).map(([agent, ended]) => (
                <tr key={agent}>
                    <td dir="auto">{agent}</td>
                    <td>{number(ended.succeeded ?? 0)}</td>
                    <td>{number(ended.failed ?? 0)}</td>
                    <td>{number(ended.cancelled ?? 0)}</td>
                </tr>
            ))}
        </Table>
    );
}

/** The failed runs of the last minute and of the window, by code and agent. */
export function Failing({ store, now, history }: { store: Store; now: Now; history: History }) {
    const groups = new Map<string, Failures & { latest: number }>();
    for (const group of history[store.window].failures) groups.set(`${group.code} ${group.agent}`, { ...group, latest: 0 });
    for (const group of now.failures) {
        const before = groups.get(`${group.code} ${group.agent}`);
        groups.set(`${group.code} ${group.agent}`, { ...group, runs: before?.runs ?? 0, latest: group.runs });
    }
    return (
        <Table id="failures" title="Failures, by code and agent" heads={["Code", "Agent", "Last minute", WINDOWS[store.window], "Last"]} none="No run has failed in this window.">
            {[...groups].map(([key, { code, agent, runs, latest, run_id, message }]) => (
                <tr key={key}>
                    <td>{code}</td>
                    <td dir="auto">{agent}</td>
                    <td>{number(latest)}</td>
                    <td>{number(runs)}</td>
                    <td class="long">
                        {run_id && (
                            <button type="button" class="quiet" onClick={() => store.openRun(run_id)}>
                                Open
                            </button>
                        )}
                        <span dir="auto">{message}</span>
                    </td>
                </tr>
            ))}
        </Table>
    );
}

export function Deliveries({ deliveries }: { deliveries: Delivery[] }) {
    const heads = ["Tenant", "Receiver", "Event", "Status", "Attempts", "Last response", "Next attempt"];
    return (
        <Table id="deliveries" title="Webhook deliveries that fail" heads={heads} none="None.">
            {deliveries.map(([id, tenant, url, type, status, attempts, response, error, due]) => (
                <tr key={id}>
                    <td>{tenant}</td>
                    <td class="long">{url}</td>
                    <td>{type}</td>
                    <td>{status}</td>
                    <td>{attempts}</td>
                    <td class="long">{response ? `HTTP ${response}` : (error ?? "—")}</td>
                    <td>{status === "pending" ? (due > 0 ? `in ${seconds(due)}` : "now") : "none"}</td>
                </tr>
            ))}
        </Table>
    );
}
