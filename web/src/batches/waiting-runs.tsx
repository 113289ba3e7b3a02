import { useEffect, useState } from "preact/hooks";

import { call, messageOf } from "../shared/api.ts";
import { LongText } from "../shared/markdown.tsx";
import { Requests } from "../shared/requests.tsx";
import type { Json, Page, Run } from "../shared/types.ts";

const SHOWN_RUNS = 20;

/** The runs of a batch that wait for answers: the first of them, with a form for each request. */
export function WaitingRuns({ batchId, count }: { batchId: string; count: number }) {
    const [runs, setRuns] = useState<Run[]>([]);
    const [problem, setProblem] = useState("");
    useEffect(() => {
        let current = true;
        call<Page<Run>>(`runs?batch_id=${batchId}&status=waiting&limit=${SHOWN_RUNS}`).then(
            (page) => current && setRuns(page.items),
            (error: unknown) => current && setProblem(messageOf(error)),
        );
        return () => {
            current = false;
        };
    }, [batchId, count]);
    const send = async (run: Run, requestId: string, answer: Record<string, Json>) => {
        const body = { answers: [{ request_id: requestId, ...answer }] };
        const answered = await call<Run>(`runs/${run.id}/answers`, { method: "POST", body });
        setRuns((known) => known.map((each) => (each.id === answered.id ? answered : each)));
    };
    return (
        <details class="waiting-runs">
            <summary>
                {count === 1 ? "1 run waits" : `${count.toLocaleString()} runs wait`} for answers{count > SHOWN_RUNS && `; these are ${SHOWN_RUNS} of them`}
            </summary>
            {problem && <p class="failure">{problem}</p>}
            <ul>
                {runs.map((run) => (
                    <li key={run.id}>
                        <h3 dir="auto">{run.custom_id ?? run.id}</h3>
                        <LongText text={run.query} />
                        <Requests requests={run.requests} status={run.status} send={(requestId, answer) => send(run, requestId, answer)} />
                    </li>
                ))}
            </ul>
        </details>
    );
}
