import { call } from "../shared/api.ts";
import type { Page, RunStep } from "../shared/types.ts";

const PAGE_STEPS = 100;
const MOST_PAGES = 5;

/** What a run has done, as it is stored: the beginning of it where that is very much. */
export interface StoredSteps {
    steps: RunStep[];
    /** Whether the run has done more than these. */
    more: boolean;
}

/** Read the steps of a run; raises what `call` does. */
export async function readSteps(runId: string, signal?: AbortSignal): Promise<StoredSteps> {
    const steps: RunStep[] = [];
    let cursor: string | null = "";
    for (let page = 0; cursor !== null && page < MOST_PAGES; page++) {
        const path: string = `runs/${runId}/steps?limit=${PAGE_STEPS}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`;
        const found: Page<RunStep> = await call(path, signal ? { signal } : {});
        steps.push(...found.items);
        cursor = found.next_cursor;
    }
    return { steps, more: cursor !== null };
}
