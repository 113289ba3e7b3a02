import { LongText } from "../shared/markdown.tsx";
import type { Live } from "./live.ts";

/** What the model has thought before it called tools and answered. */
export function Thoughts({ live }: { live: Live }) {
    if (!live.thoughts.length) return null;
    const text = live.thoughts.map((thought) => thought.text || "(not shown)").join("\n\n");
    return (
        <details class="step thoughts">
            <summary>
                <span class="name">Reasoning</span>
                <span class="state">
                    {live.running && live.thinking ? "thinking" : "done"}
                    {` · ${text.length.toLocaleString()} characters`}
                </span>
            </summary>
            <LongText text={text} />
        </details>
    );
}
