import { useEffect, useState } from "preact/hooks";

import { Bar } from "../shared/bar.tsx";
import { AgentPicker } from "./agent-picker.tsx";
import { Composer } from "./composer.tsx";
import { Conversation } from "./conversation.tsx";
import type { Store } from "./store.ts";
import { titleOf } from "./store.ts";
import { ThreadList } from "./thread-list.tsx";

export function App({ store }: { store: Store }) {
    const [, setCount] = useState(0);
    const [listed, setListed] = useState(false);
    useEffect(() => store.listen(() => setCount((count) => count + 1)), [store]);
    useEffect(() => {
        document.title = store.thread ? `${titleOf(store.thread)} · agent-relay` : "agent-relay";
    });
    const empty = store.threadId === null && !store.turns.length && !store.pending;
    return (
        <div class={`chat ${listed ? "listed" : ""}`}>
            <a class="skip" href="#query">
                Skip to the message field
            </a>
            <Bar page="chat">
                <button type="button" class="quiet only-narrow" aria-expanded={listed} aria-controls="threads" onClick={() => setListed(!listed)}>
                    Threads
                </button>
            </Bar>
            <ThreadList store={store} onOpened={() => setListed(false)} />
            <main>
                {store.trouble && (
                    <p class="trouble" role="alert">
                        {store.trouble}
                    </p>
                )}
                {store.notice && (
                    <p class="trouble" role="alert">
                        {store.notice}
                    </p>
                )}
                {empty ? <AgentPicker store={store} /> : <Conversation store={store} />}
                <Composer store={store} />
            </main>
            <p class="unseen" role="status">
                {store.announcement}
            </p>
        </div>
    );
}
