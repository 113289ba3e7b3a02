import { useEffect, useRef, useState } from "preact/hooks";

import type { Store } from "./store.ts";

/** A field that grows with its text is laid out anew at each change; with more characters than this it has its full height. */
const LONG = 10_000;

/** Where a query is written, or a message into the run that is under way. Enter sends, Shift and Enter begin a line. */
export function Composer({ store }: { store: Store }) {
    const [query, setQuery] = useState(() => store.takeDraft());
    const field = useRef<HTMLTextAreaElement>(null);
    const { agent, underWay } = store;
    const blocked = !agent || store.pending !== null || (store.threadId !== null && store.thread === null);
    useEffect(() => field.current?.focus(), []);
    const send = (into: typeof underWay) => {
        if (blocked || !query.trim()) return;
        if (into) store.add(into, query);
        else store.ask(query);
        setQuery("");
        field.current?.focus();
    };
    return (
        <form
            class={underWay ? "composer both" : "composer"}
            onSubmit={(event) => {
                event.preventDefault();
                send(null);
            }}
        >
            <label class="unseen" for="query">
                {agent ? `Message to ${agent.agent_type}` : "Message"}
            </label>
            <textarea
                id="query"
                ref={field}
                rows={2}
                class={query.length > LONG ? "long" : undefined}
                dir="auto"
                aria-describedby="query-hint"
                placeholder={agent ? `Ask ${agent.agent_type}` : "Ask"}
                value={query}
                onInput={(event) => setQuery(event.currentTarget.value)}
                onKeyDown={(event) => {
                    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                        event.preventDefault();
                        send(event.ctrlKey || event.metaKey ? underWay : null);
                    }
                }}
            />
            <div class="ways">
                {underWay && (
                    <button type="button" disabled={blocked || !query.trim()} onClick={() => send(underWay)}>
                        Add to run
                    </button>
                )}
                <button type="submit" class="primary" disabled={blocked || !query.trim()}>
                    {underWay ? "Ask next" : "Send"}
                </button>
            </div>
            <p id="query-hint" class="detail">
                {underWay
                    ? "Ctrl+Enter adds it to the run, before the agent's next request to the model. Enter asks it next."
                    : "Enter sends, Shift+Enter begins a line."}
            </p>
        </form>
    );
}
