import { useRef } from "preact/hooks";

import { dateTime } from "../shared/format.ts";
import type { Store } from "./store.ts";

const CODES = ["model_unavailable", "output_invalid", "deadline_exceeded", "worker_crashed"];

/** Failed runs that could succeed if asked again: one, some or all of a code are requeued. */
export function DeadLetters({ store }: { store: Store }) {
    const sure = useRef<HTMLDialogElement>(null);
    const ids = store.letters.map((letter) => letter.run_id);
    const all = ids.length > 0 && ids.every((id) => store.selected.has(id));
    return (
        <section aria-labelledby="dead-letters">
            <h2 id="dead-letters">Dead letters</h2>
            <div class="filters">
                <label>
                    Code
                    <select value={store.code} onChange={(event) => store.choose(event.currentTarget.value)}>
                        <option value="">all</option>
                        {CODES.map((code) => (
                            <option key={code} value={code}>
                                {code}
                            </option>
                        ))}
                    </select>
                </label>
                <button type="button" disabled={store.requeueing || !store.selected.size} onClick={() => void store.requeue([...store.selected])}>
                    Requeue {store.selected.size || ""} selected
                </button>
                <button type="button" disabled={store.requeueing || !store.code || !ids.length} onClick={() => sure.current?.showModal()}>
                    Requeue all {store.code ? `of ${store.code}` : "of a code"}
                </button>
                <button type="button" class="quiet" onClick={() => void store.readLetters()}>
                    Read again
                </button>
            </div>
            <p class="note" role="status" hidden={!store.notice}>
                {store.notice}
            </p>
            {ids.length ? (
                <div class="scrolls tall" tabindex={0} role="region" aria-labelledby="dead-letters">
                    <table>
                        <thead>
                            <tr>
                                <th scope="col">
                                    <input type="checkbox" aria-label="Select all that are shown" checked={all} onChange={() => store.select(ids, !all)} />
                                </th>
                                <th scope="col">Ended</th>
                                <th scope="col">Code</th>
                                <th scope="col">Agent</th>
                                <th scope="col">Tenant</th>
                                <th scope="col">Attempts</th>
                                <th scope="col">Reason</th>
                                <th scope="col">
                                    <span class="unseen">What to do</span>
                                </th>
                            </tr>
                        </thead>
                        <tbody>
                            {store.letters.map((letter) => (
                                <tr key={letter.run_id}>
                                    <td>
                                        <input
                                            type="checkbox"
                                            aria-label={`Select ${letter.run_id}`}
                                            checked={store.selected.has(letter.run_id)}
                                            onChange={(event) => store.select([letter.run_id], event.currentTarget.checked)}
                                        />
                                    </td>
                                    <td>{dateTime(letter.finished_at)}</td>
                                    <td>{letter.error.code}</td>
                                    <td dir="auto">{letter.agent_type}</td>
                                    <td>{letter.tenant}</td>
                                    <td>{letter.attempt}</td>
                                    <td class="long" dir="auto">
                                        {letter.error.message.slice(0, 200)}
                                    </td>
                                    <td class="buttons">
                                        <button type="button" class="quiet" onClick={() => store.openRun(letter.run_id)}>
                                            Open
                                        </button>
                                        <button type="button" class="quiet" disabled={store.requeueing} onClick={() => void store.requeue([letter.run_id])}>
                                            Requeue
                                        </button>
                                    </td>
                                </tr>
                            ))}
                        </tbody>
                    </table>
                </div>
            ) : (
                <p class="none">{store.lettersRead ? "None." : "Reading…"}</p>
            )}
            {store.moreLetters && (
                <button type="button" onClick={() => void store.readLetters(true)}>
                    Show more
                </button>
            )}
            <dialog ref={sure} aria-labelledby="sure">
                <h2 id="sure">Requeue all dead letters of {store.code}?</h2>
                <p>Each becomes a new run of its user and calls its agent again.</p>
                <form method="dialog" class="choices">
                    <button type="submit">Cancel</button>
                    <button type="submit" class="primary" onClick={() => void store.requeueAll()}>
                        Requeue all
                    </button>
                </form>
            </dialog>
        </section>
    );
}
