import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import type { Result } from "./store.ts";

const ROW_PIXELS = 36;
/** Rows that move together: scrolling by fewer changes no element. */
const BLOCK_ROWS = 10;
const BLOCK_PIXELS = ROW_PIXELS * BLOCK_ROWS;

/**
 * A table of any length: only the rows in sight, and a block on each side, are elements.
 *
 * A block that goes out of sight is used again for the one that comes: its texts change, and no element is made.
 */
export function ResultsTable({ results, onOpen }: { results: Result[]; onOpen: (runId: string) => void }) {
    const box = useRef<HTMLDivElement>(null);
    const [top, setTop] = useState(0);
    const [height, setHeight] = useState(600);
    useEffect(() => {
        const element = box.current;
        if (!element) return;
        const observer = new ResizeObserver(([entry]) => entry && setHeight(entry.contentRect.height));
        observer.observe(element);
        return () => observer.disconnect();
    }, []);
    const inSight = Math.ceil(height / BLOCK_PIXELS) + 1;
    const all = Math.ceil(results.length / BLOCK_ROWS);
    const first = Math.max(0, Math.min(top - 1, all - inSight - 2));
    const blocks = Array.from({ length: Math.min(inSight + 2, all - first) }, (_, index) => first + index);
    return (
        <div
            class="results"
            ref={box}
            tabindex={0}
            role="table"
            aria-label="Results"
            aria-rowcount={results.length}
            onScroll={(event) => setTop(Math.floor(event.currentTarget.scrollTop / BLOCK_PIXELS))}
        >
            <div class="space" role="presentation" style={{ height: `${results.length * ROW_PIXELS}px` }}>
                {blocks.map((block) => (
                    <Rows key={block % (inSight + 2)} results={results} from={block * BLOCK_ROWS} onOpen={onOpen} />
                ))}
            </div>
        </div>
    );
}

function Rows({ results, from, onOpen }: { results: Result[]; from: number; onOpen: (runId: string) => void }) {
    const end = Math.min(from + BLOCK_ROWS, results.length);
    return useMemo(
        () => (
            <div class="block" role="rowgroup" style={{ transform: `translateY(${from * ROW_PIXELS}px)` }}>
                {results.slice(from, end).map((result, index) => (
                    <div key={index} class="row" role="row" aria-rowindex={from + index + 1}>
                        <span role="cell" class="id">
                            <button type="button" class="quiet" onClick={() => onOpen(result.runId)}>
                                {result.customId}
                            </button>
                        </span>
                        <span role="cell" class={`status ${result.status}`}>
                            {result.status}
                        </span>
                        <span role="cell" class="summary">
                            {result.summary}
                        </span>
                    </div>
                ))}
            </div>
        ),
        [results, from, end],
    );
}
