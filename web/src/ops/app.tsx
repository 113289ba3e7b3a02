import { useEffect, useState } from "preact/hooks";

import { Bar } from "../shared/bar.tsx";
import { DeadLetters } from "./dead-letters.tsx";
import { Figures } from "./figures.tsx";
import { AllPlots } from "./plots.tsx";
import { StoryDialog } from "./story.tsx";
import type { Store } from "./store.ts";
import { Agents, Deliveries, Failing, Processes, Queues, Workers } from "./tables.tsx";

export function App({ store }: { store: Store }) {
    const [, setCount] = useState(0);
    useEffect(() => store.listen(() => setCount((count) => count + 1)), [store]);
    const { now, history } = store;
    return (
        <>
            <Bar page="ops" />
            <main class="ops" data-ready={now !== null && history !== null}>
                <h1>Operations</h1>
                {!store.connected && (
                    <p class="trouble" role="alert">
                        The service does not answer. Trying again; what is shown is old.
                    </p>
                )}
                {store.trouble && (
                    <p class="trouble" role="alert">
                        {store.trouble}
                    </p>
                )}
                {now ? <Figures now={now} /> : <p class="none">Looking at the service…</p>}
                {now && history && <AllPlots store={store} now={now} history={history} />}
                <DeadLetters store={store} />
                {now && history && <Failing store={store} now={now} history={history} />}
                {now && (
                    <>
                        <Workers workers={now.workers} />
                        <Queues now={now} />
                        <Agents agents={now.agents} />
                        <Processes processes={now.processes} />
                        <Deliveries deliveries={now.deliveries} />
                    </>
                )}
                <section aria-labelledby="open-run">
                    <h2 id="open-run">Open a run</h2>
                    <form
                        class="filters"
                        onSubmit={(event) => {
                            event.preventDefault();
                            const runId = String(new FormData(event.currentTarget).get("run")).trim();
                            if (runId) store.openRun(runId);
                        }}
                    >
                        <label>
                            Id of the run
                            <input name="run" spellcheck={false} autocomplete="off" />
                        </label>
                        <button type="submit">Open</button>
                    </form>
                </section>
            </main>
            {store.runId && <StoryDialog key={store.runId} runId={store.runId} onOpen={(id) => store.openRun(id)} onClose={() => store.openRun(null)} />}
        </>
    );
}
