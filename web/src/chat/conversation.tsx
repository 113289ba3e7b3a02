import { useEffect, useRef } from "preact/hooks";

import { PendingTurn, TurnView } from "./turn.tsx";
import type { Store } from "./store.ts";

const NEAR_END_PIXELS = 120;

/** The turns of a thread. It stays at its end while it grows, unless somebody has scrolled up. */
export function Conversation({ store }: { store: Store }) {
    const place = useRef<HTMLDivElement>(null);
    const content = useRef<HTMLDivElement>(null);
    const atEnd = useRef(true);
    useEffect(() => {
        const box = place.current;
        const inner = content.current;
        if (!box || !inner) return;
        atEnd.current = true;
        const stay = () => {
            if (atEnd.current) box.scrollTop = box.scrollHeight;
        };
        const observer = new ResizeObserver(stay);
        observer.observe(inner);
        observer.observe(box);
        return () => observer.disconnect();
    }, [store.threadId]);
    useEffect(() => {
        atEnd.current = true;
    }, [store.turns.length]);
    const schema = store.agent?.output_schema ?? {};
    const { pending } = store;
    return (
        <div
            class="conversation"
            ref={place}
            tabindex={0}
            role="region"
            aria-label="Conversation"
            onScroll={(event) => {
                const box = event.currentTarget;
                atEnd.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PIXELS;
            }}
        >
            <div class="turns" ref={content}>
                {store.loading && !store.turns.length && <p class="none">Loading the thread…</p>}
                {!store.loading && store.threadId && !store.turns.length && !pending && <p class="none">This thread has no messages yet.</p>}
                {store.turns.map((turn) => (
                    <TurnView key={turn.runId} turn={turn} schema={schema} store={store} />
                ))}
                {pending && pending.threadId === store.threadId && <PendingTurn pending={pending} store={store} />}
            </div>
        </div>
    );
}
