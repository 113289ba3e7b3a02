import { useEffect, useState } from "preact/hooks";

import { Bar } from "../shared/bar.tsx";
import { counted } from "../shared/format.ts";
import type { Batch } from "../shared/types.ts";
import { BatchView } from "./batch-view.tsx";
import { NewBatch } from "./new-batch.tsx";
import type { Store } from "./store.ts";

export function App({ store }: { store: Store }) {
    const [, setCount] = useState(0);
    const [listed, setListed] = useState(false);
    useEffect(() => store.listen(() => setCount((count) => count + 1)), [store]);
    const open = (event: MouseEvent, id: string | null) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        store.open(id);
        setListed(false);
    };
    return (
        <div class={`chat ${listed ? "listed" : ""}`}>
            <Bar page="batches">
                <button type="button" class="quiet only-narrow" aria-expanded={listed} aria-controls="batches" onClick={() => setListed(!listed)}>
                    Batches
                </button>
            </Bar>
            <aside id="batches" aria-label="Batches">
                <a class="button primary" href="batches" onClick={(event) => open(event, null)}>
                    New batch
                </a>
                {store.loaded && !store.batches.length && <p class="none">No batches yet.</p>}
                <ul class="threads">
                    {store.batches.map((batch) => (
                        <li key={batch.id} class={batch.id === store.batchId ? "open" : ""}>
                            <a
                                href={`?batch=${batch.id}`}
                                aria-current={batch.id === store.batchId ? "page" : undefined}
                                onClick={(event) => open(event, batch.id)}
                            >
                                <span class="title" dir="auto">
                                    {nameOf(batch)}
                                </span>
                                <span class="detail">
                                    {counted(batch.counts.total, "row")} · {batch.status.replace("_", " ")}
                                </span>
                            </a>
                        </li>
                    ))}
                </ul>
            </aside>
            <main>
                {store.trouble && (
                    <p class="trouble" role="alert">
                        {store.trouble}
                    </p>
                )}
                {store.notice && (
                    <p class="trouble lines" role="alert">
                        {store.notice}
                    </p>
                )}
                {store.batchId === null ? <NewBatch store={store} /> : <BatchView store={store} />}
            </main>
        </div>
    );
}

export function nameOf(batch: Batch): string {
    const file = batch.metadata.file;
    const name = typeof file === "string" && file ? file : `${batch.agent_type}, ${new Date(batch.created_at).toLocaleString()}`;
    return batch.retry_of ? `${name} (retry)` : name;
}
