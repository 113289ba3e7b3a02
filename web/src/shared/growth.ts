import type { StreamEvent } from "./types.ts";

/** Apply a `text_delta` or a `reasoning_delta`: a whole text, or characters to drop from the end and characters to append. */
export function grown(text: string, event: StreamEvent): string {
    if (event.token !== undefined) return event.token;
    const kept = event.drop ? text.slice(0, text.length - event.drop) : text;
    return kept + (event.append ?? "");
}
