import type { ComponentChildren } from "preact";

import { counted, seconds, secondsBetween } from "../shared/format.ts";
import { parseJson } from "../shared/json.ts";
import { LongText } from "../shared/markdown.tsx";
import type { Json, RunStep } from "../shared/types.ts";
import type { Live } from "./live.ts";
import type { StoredSteps } from "./run-steps.ts";

/** What a call that has not returned does, by what its run does. */
const STATES: Record<string, string> = { queued: "waits", waiting: "waits for an answer", running: "running" };

/** The tools that the agent calls, while it does. */
export function LiveSteps({ live }: { live: Live }) {
    if (!live.steps.length) return null;
    return (
        <ol class="steps" aria-label="Steps">
            {live.steps.map((step) => (
                <li key={step.id}>
                    <StepView name={<code>{step.name}</code>} state={[step.ended ? "done" : (STATES[live.status] ?? "not finished"), timeOf(step.seconds)]}>
                        <Call args={step.args} result={step.ended ? step.result : undefined} ended={step.ended} />
                    </StepView>
                </li>
            ))}
        </ol>
    );
}

/** All that a run has done, each with its time and what it used. */
export function AllSteps({ stored }: { stored: StoredSteps }) {
    return (
        <>
            <ol class="steps" aria-label="Steps">
                {stored.steps.map((step) => (
                    <li key={step.index}>
                        <StoredStep step={step} />
                    </li>
                ))}
            </ol>
            {!stored.steps.length && <p class="none">No steps of this run are kept.</p>}
            {stored.more && <p class="note">The run has done more: these are the first {stored.steps.length} steps.</p>}
        </>
    );
}

const NAMES: Record<string, string> = { response: "Model", reasoning: "Reasoning", message: "Message to the run" };

function StoredStep({ step }: { step: RunStep }) {
    const isCall = step.kind === "tool_call" || step.kind === "native_tool";
    const ended = Boolean(step.finished_at);
    const time = timeOf(step.kind === "message" || step.kind === "reasoning" ? null : secondsBetween(step.started_at, step.finished_at));
    const attempt = (step.attempt ?? 1) > 1 ? `attempt ${step.attempt}` : "";
    const { usage } = step;
    const tokens = usage ? `${counted(usage.input_tokens, "token")} in, ${usage.output_tokens.toLocaleString()} out` : "";
    if (isCall) {
        const state = [ended ? "done" : "not finished", step.kind === "native_tool" ? "a tool of the provider" : "", time, attempt];
        return (
            <StepView name={<code>{step.tool_name ?? "tool"}</code>} state={state}>
                <Call args={step.args} result={step.result} ended={ended} />
            </StepView>
        );
    }
    return (
        <StepView name={NAMES[step.kind] ?? step.kind} state={[time, tokens, attempt]}>
            {step.text ? <LongText text={step.text} /> : <p class="missing">{step.kind === "response" ? "It said nothing, and called tools." : "not shown"}</p>}
        </StepView>
    );
}

function StepView({ name, state, children }: { name: ComponentChildren; state: string[]; children: ComponentChildren }) {
    return (
        <details class="step">
            <summary>
                <span class="name">{name}</span>
                <span class="state">{state.filter(Boolean).join(" · ")}</span>
            </summary>
            {children}
        </details>
    );
}

function Call({ args, result, ended }: { args: Json | undefined; result: Json | undefined; ended: boolean }) {
    return (
        <>
            <h3>Arguments</h3>
            <Part value={args} />
            {ended && <h3>Result</h3>}
            {ended && <Part value={result} />}
        </>
    );
}

function Part({ value }: { value: Json | undefined }) {
    if (value === undefined || value === null) return <p class="missing">not shown</p>;
    if (typeof value !== "string") return <LongText text={JSON.stringify(value, null, 2)} />;
    try {
        return <LongText text={JSON.stringify(parseJson(value), null, 2)} />;
    } catch {
        return <LongText text={value} />;
    }
}

function timeOf(duration: number | null): string {
    return duration === null ? "" : seconds(duration);
}
