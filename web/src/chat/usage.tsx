import { counted, dollars, seconds, secondsBetween } from "../shared/format.ts";
import type { Run, Usage } from "../shared/types.ts";

/** What an answer took: time, tokens and cost in a line, which unfolds to all that is known. */
export function UsageLine({ usage, run, model }: { usage: Usage | null; run: Run | null; model: string }) {
    const time = secondsBetween(run?.started_at, run?.finished_at);
    const attempts = run?.attempt ?? 1;
    const used = usage && usage.requests > 0 ? usage : null;
    const cost = typeof used?.cost_usd === "number" ? dollars(used.cost_usd) : "";
    const line = [
        time === null ? "" : seconds(time),
        used ? counted(used.input_tokens + used.output_tokens, "token") : "",
        cost,
        attempts > 1 ? `${attempts} attempts` : "",
    ].filter(Boolean);
    if (!line.length) return null;
    const facts: [string, string][] = [];
    if (used) {
        facts.push(["Model requests", used.requests.toLocaleString()]);
        facts.push(["Tokens read", `${used.input_tokens.toLocaleString()}${cached(used)}`]);
        facts.push(["Tokens written", used.output_tokens.toLocaleString()]);
        if (used.tool_calls !== undefined) facts.push(["Tool calls", used.tool_calls.toLocaleString()]);
        facts.push(["Cost", cost || "no price is known"]);
    }
    if (attempts > 1) facts.push(["Attempts", `${attempts}; all of them count`]);
    if (model) facts.push(["Model", model]);
    if (!facts.length) return <span class="usage">{line.join(" · ")}</span>;
    return (
        <details class="usage">
            <summary>
                <span class="unseen">It took </span>
                {line.join(" · ")}
            </summary>
            <dl>
                {facts.map(([name, value]) => (
                    <div key={name}>
                        <dt>{name}</dt>
                        <dd>{value}</dd>
                    </div>
                ))}
            </dl>
        </details>
    );
}

function cached(usage: Usage): string {
    const parts: string[] = [];
    if (usage.cache_read_tokens) parts.push(`${usage.cache_read_tokens.toLocaleString()} out of the cache`);
    if (usage.cache_write_tokens) parts.push(`${usage.cache_write_tokens.toLocaleString()} into it`);
    return parts.length ? `, of these ${parts.join(", ")}` : "";
}
