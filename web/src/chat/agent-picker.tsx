import type { Store } from "./store.ts";

/** Choose who is asked in a new thread. */
export function AgentPicker({ store }: { store: Store }) {
    const { agents, agent } = store;
    if (agents === null) return <div class="welcome" aria-busy="true" />;
    if (!agents.length) {
        return (
            <div class="welcome">
                <h1>No agent is known yet</h1>
                <p>Agents appear here once a worker has started that serves them, and your key may ask them.</p>
            </div>
        );
    }
    return (
        <div class="welcome">
            <h1>Whom do you want to ask?</h1>
            <fieldset class="agents">
                <legend class="unseen">Agent</legend>
                {agents.map((each) => (
                    <label key={each.agent_type} class={`agent ${each === agent ? "chosen" : ""}`}>
                        <input
                            type="radio"
                            name="agent"
                            value={each.agent_type}
                            checked={each === agent}
                            onChange={() => store.chooseAgent(each.agent_type)}
                        />
                        <span class="name">{each.agent_type}</span>
                        <span class="description">{each.description || "It has no description."}</span>
                        {!each.served && <span class="badge warn">No worker serves it now</span>}
                    </label>
                ))}
            </fieldset>
            {!!agent?.examples.length && (
                <div class="examples">
                    {agent.examples.map((example) => (
                        <button type="button" key={example} dir="auto" onClick={() => store.ask(example)}>
                            {example}
                        </button>
                    ))}
                </div>
            )}
        </div>
    );
}
