import type { Live } from "./live.ts";

const REASONS: Record<string, string> = {
    worker_lost: "The worker that was answering was lost.",
    worker_stopping: "The worker that was answering was stopped.",
};

/** Why an answer has begun again. */
export function Attempts({ live }: { live: Live }) {
    const last = live.attempts.at(-1);
    if (!last || last.number < 2 || last.reason === "answered") return null;
    const kept = last.stepsKept;
    return (
        <p class="note attempt">
            <strong>Attempt {last.number}.</strong> {REASONS[last.reason]}{" "}
            {kept ? `Another one goes on after ${kept} finished ${kept === 1 ? "step" : "steps"}.` : "Another one answers again."}
        </p>
    );
}
