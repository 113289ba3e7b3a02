import { LongText } from "../shared/markdown.tsx";
import type { Live } from "./live.ts";
import type { Added } from "./store.ts";

const LONG_CHARACTERS = 5_000;

/** A text that somebody wrote. */
export function Query({ text }: { text: string }) {
    return (
        <div class="query" dir="auto">
            {text.length > LONG_CHARACTERS ? <LongText text={text} /> : text}
        </div>
    );
}

/** The messages that were sent into a run, and whether its agent has got them. */
export function AddedMessages({ added, live, unfinished }: { added: Added[]; live: Live | null; unfinished: boolean }) {
    return (
        <>
            {added.map((message) => (
                <section key={message.id} class="added" aria-label="Message to the run">
                    <Query text={message.text} />
                    {unfinished && live && !live.gap && !live.taken.has(message.id) && <p class="detail">The agent gets it with its next request to the model.</p>}
                </section>
            ))}
        </>
    );
}
