import { useEffect, useRef, useState } from "preact/hooks";

import { messageOf, read } from "../shared/api.ts";
import { dateTime, number, seconds } from "../shared/format.ts";
import type { Story } from "./types.ts";

/** What happened to a run, in order, and how long after its acceptance. */
export function StoryDialog({ runId, onOpen, onClose }: { runId: string; onOpen: (runId: string) => void; onClose: () => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    const [story, setStory] = useState<Story | null>(null);
    const [problem, setProblem] = useState("");
    const load = () => {
        setProblem("");
        read<Story>(`console/operations/runs/${encodeURIComponent(runId)}`).then(setStory, (error: unknown) => setProblem(messageOf(error)));
    };
    useEffect(() => {
        dialog.current?.showModal();
        load();
    }, [runId]);
    const accepted = story?.moments.find((moment) => moment.what === "accepted")?.at;
    return (
        <dialog ref={dialog} class="story" aria-labelledby="story-title" onClose={onClose}>
            <h2 id="story-title">Run {runId}</h2>
            {problem && (
                <p class="failure" role="alert">
                    {problem}
                </p>
            )}
            {story && (
                <>
                    <p class="counts">
                        <strong dir="auto">{story.agent_type}</strong> · {story.status} · tenant {story.tenant} · {story.queue}
                        {story.worker && ` · ${story.worker}`}
                        {story.crashes > 0 && ` · ${story.crashes === 1 ? "1 crash" : `${story.crashes} crashes`}`}
                        {` · ${number((story.usage.input_tokens ?? 0) + (story.usage.output_tokens ?? 0))} tokens`}
                    </p>
                    {story.error && (
                        <p class="failure">
                            <strong>{story.error.code}</strong> <span dir="auto">{story.error.message}</span>
                        </p>
                    )}
                    <ol class="timeline" aria-label="Timeline">
                        {story.moments.map((moment, index) => (
                            <li key={index} data-what={moment.what}>
                                <span class="when" title={moment.at ? dateTime(moment.at) : undefined}>
                                    {moment.at === null ? "" : !accepted || moment.what === "accepted" ? dateTime(moment.at) : after(accepted, moment.at)}
                                </span>
                                <strong>{moment.what}</strong> <span dir="auto">{moment.detail}</span>
                            </li>
                        ))}
                    </ol>
                    {!story.log_kept && <p class="detail">Its event log is not kept any more; attempts and tools are not known.</p>}
                    {(story.retry_of || story.requeued_as) && (
                        <p class="actions">
                            {story.retry_of && (
                                <button type="button" class="quiet" onClick={() => onOpen(story.retry_of ?? "")}>
                                    It retries another run
                                </button>
                            )}
                            {story.requeued_as && (
                                <button type="button" class="quiet" onClick={() => onOpen(story.requeued_as ?? "")}>
                                    It was requeued as another run
                                </button>
                            )}
                        </p>
                    )}
                </>
            )}
            <div class="choices">
                <button type="button" onClick={load}>
                    Read again
                </button>
                <button type="button" class="primary" onClick={() => dialog.current?.close()}>
                    Close
                </button>
            </div>
        </dialog>
    );
}

function after(accepted: string, at: string): string {
    const passed = (new Date(at).getTime() - new Date(accepted).getTime()) / 1000;
    return passed < 0 ? dateTime(at) : `+ ${seconds(passed)}`;
}
