// What does not compile here is a promise of the types that is broken.

import { AgentRelay, Refused } from "@agent-relay/client";
import type { components, paths, Progress } from "@agent-relay/client";

interface Support {
    advice: string;
    actions: { title: string }[];
}

type Equal<One, Other> = (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false;
const is = <Check extends true>(_check?: Check): void => {};

const relay = new AgentRelay({ baseUrl: "http://127.0.0.1:8000", token: async () => "token" });
new AgentRelay({ baseUrl: "http://127.0.0.1:8000", apiKey: "key", userId: "ann" });
// @ts-expect-error Somebody must call.
new AgentRelay({ baseUrl: "http://127.0.0.1:8000" });
// @ts-expect-error A token is of one user, an API key of a tenant.
new AgentRelay({ baseUrl: "http://127.0.0.1:8000", token: "token", apiKey: "key" });

const run = await relay.submit({ agent_type: "bank_support", query: "hello", deadline_s: 60, metadata: { ticket: 7 } });
await relay.submit({ thread_id: "id", query: "hello", multitask_strategy: "reject" });
// @ts-expect-error A run has one target.
await relay.submit({ thread_id: "id", agent_type: "bank_support", query: "hello" });
// @ts-expect-error There is no such field.
await relay.submit({ agent_type: "bank_support", query: "hello", deadline: 60 });
is<Equal<typeof run, components["schemas"]["Run"]>>();

for await (const progress of relay.follow<Support>(run.id)) {
    is<Equal<typeof progress, Progress<Support>>>();
    const title: string | undefined = progress.output?.actions?.[0]?.title;
    // @ts-expect-error It may not be there yet.
    const advice: string | undefined = progress.output.advice;
    if (progress.status === "succeeded") is<Equal<typeof progress.output, Support>>();
    if (progress.status === "failed") is<Equal<typeof progress.error, components["schemas"]["RunError"]>>();
    const { event } = progress;
    if (event.event === "text_delta") is<Equal<typeof event.token, string>>();
    if (event.event === "tool_call") is<Equal<typeof event.args, string | null>>();
    if (event.event === "done") is<Equal<typeof event.status, "succeeded" | "failed" | "cancelled" | "waiting">>();
    // @ts-expect-error There is no such event.
    if (event.event === "finished") break;
    console.log(title, advice);
}
for await (const { output } of relay.follow(run.id, { text: true })) is<Equal<typeof output, string | undefined>>();

const problem = (error: Refused): string | undefined => error.problem.errors?.[0]?.pointer;
type Threads = paths["/api/v1/threads"]["get"]["responses"][200]["content"]["application/json"]["items"][number]["title"];
is<Equal<Threads, string | null>>();
console.log(problem);
