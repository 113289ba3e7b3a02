import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { messageOf } from "../shared/api.ts";
import { counted } from "../shared/format.ts";
import type { Store } from "./store.ts";
import type { Checked, Reading, TableFile } from "./table-file.ts";
import { check, DELIMITERS, ENCODINGS, guess, readTable } from "./table-file.ts";

const PREVIEW_ROWS = 20;
const SHOWN_FAULTS = 100;
const PREVIEW_CHARACTERS = 300;

/** Drop a file, look at it, choose the column that is asked, submit. */
export function NewBatch({ store }: { store: Store }) {
    const [file, setFile] = useState<{ name: string; bytes: Uint8Array<ArrayBuffer> } | null>(null);
    const [reading, setReading] = useState<Reading>({ header: true });
    const [table, setTable] = useState<TableFile | null>(null);
    const [columns, setColumns] = useState({ query: 0, id: -1 });
    const [checked, setChecked] = useState<Checked | null>(null);
    const [problem, setProblem] = useState("");
    const [agentType, setAgentType] = useState("");
    const [over, setOver] = useState(false);
    const field = useRef<HTMLInputElement>(null);
    const agents = store.agents ?? [];
    const agent = agents.find((each) => each.agent_type === agentType) ?? agents.find((each) => each.served) ?? agents[0];

    const read = async (chosen: File | undefined) => {
        if (!chosen) return;
        setReading({ header: true });
        setFile({ name: chosen.name, bytes: new Uint8Array(await chosen.arrayBuffer()) });
    };
    useLayoutEffect(() => {
        // At once: it guesses the columns, and a column that is chosen before the next frame is to stay.
        if (!file) return;
        try {
            const found = readTable(file.name, file.bytes, reading);
            setTable(found);
            setColumns(guess(found));
            setProblem("");
        } catch (error) {
            setTable(null);
            setProblem(messageOf(error));
        }
    }, [file, reading]);
    useEffect(() => {
        setChecked(null);
        if (!table) return;
        let current = true;
        void check(table, columns.query, columns.id).then((found) => current && setChecked(found));
        return () => {
            current = false;
        };
    }, [table, columns]);

    return (
        <div class="welcome new-batch">
            <h1>Ask about each row of a file</h1>
            <label
                class={`drop ${over ? "over" : ""}`}
                onDragOver={(event) => {
                    event.preventDefault();
                    setOver(true);
                }}
                onDragLeave={() => setOver(false)}
                onDrop={(event) => {
                    event.preventDefault();
                    setOver(false);
                    void read(event.dataTransfer?.files[0]);
                }}
            >
                <span>{file ? file.name : "Drop a CSV or JSON lines file here, or choose one"}</span>
                <input ref={field} type="file" accept=".csv,.tsv,.txt,.jsonl,.ndjson,.json" onChange={(event) => void read(event.currentTarget.files?.[0])} />
            </label>
            {problem && (
                <p class="failure" role="alert">
                    {problem}
                </p>
            )}
            {table && (
                <>
                    <div class="settings">
                        <label>
                            Agent
                            <select value={agent?.agent_type ?? ""} onChange={(event) => setAgentType(event.currentTarget.value)}>
                                {agents.map((each) => (
                                    <option key={each.agent_type} value={each.agent_type}>
                                        {each.agent_type}
                                    </option>
                                ))}
                            </select>
                        </label>
                        <label>
                            Column to ask
                            <select value={String(columns.query)} onChange={(event) => setColumns({ ...columns, query: Number(event.currentTarget.value) })}>
                                {table.columns.map((name, index) => (
                                    <option key={index} value={String(index)}>
                                        {name}
                                    </option>
                                ))}
                            </select>
                        </label>
                        <label>
                            Id of a row
                            <select value={String(columns.id)} onChange={(event) => setColumns({ ...columns, id: Number(event.currentTarget.value) })}>
                                <option value="-1">its line</option>
                                {table.columns.map((name, index) => (
                                    <option key={index} value={String(index)}>
                                        {name}
                                    </option>
                                ))}
                            </select>
                        </label>
                        <label>
                            Encoding
                            <select value={table.encoding} onChange={(event) => setReading({ ...reading, encoding: event.currentTarget.value })}>
                                {[...new Set([table.encoding, ...ENCODINGS])].map((name) => (
                                    <option key={name}>{name}</option>
                                ))}
                            </select>
                        </label>
                        {table.kind === "csv" && (
                            <label>
                                Delimiter
                                <select value={table.delimiter} onChange={(event) => setReading({ ...reading, delimiter: event.currentTarget.value })}>
                                    {[...new Set([table.delimiter, ...Object.keys(DELIMITERS)])].map((each) => (
                                        <option key={each} value={each}>
                                            {DELIMITERS[each] ?? each}
                                        </option>
                                    ))}
                                </select>
                            </label>
                        )}
                        {table.kind === "csv" && (
                            <label class="check">
                                <input type="checkbox" checked={reading.header} onChange={(event) => setReading({ ...reading, header: event.currentTarget.checked })} />
                                The first line names the columns
                            </label>
                        )}
                    </div>
                    <Preview table={table} query={columns.query} />
                    {checked && <Faults checked={checked} />}
                    <p>
                        <button
                            type="button"
                            class="primary"
                            disabled={!checked?.items.length || !agent || store.submitting !== ""}
                            onClick={() => checked && agent && void store.submit(agent.agent_type, checked.items, table.name)}
                        >
                            Submit {checked ? counted(checked.items.length, "row") : "rows"}
                        </button>
                        {!!checked?.faults.length && <span class="detail"> {counted(checked.faults.length, "row")} with faults {checked.faults.length === 1 ? "is" : "are"} left out</span>}
                    </p>
                </>
            )}
            {store.submitting && <p role="status">{store.submitting}</p>}
        </div>
    );
}

function Preview({ table, query }: { table: TableFile; query: number }) {
    return (
        <div class="scrolls" tabindex={0} role="region" aria-label="Preview">
            <table class="preview">
                <thead>
                    <tr>
                        <th scope="col">Line</th>
                        {table.columns.map((name, index) => (
                            <th key={index} scope="col" class={index === query ? "asked" : ""}>
                                {name}
                            </th>
                        ))}
                    </tr>
                </thead>
                <tbody>
                    {table.rows.slice(0, PREVIEW_ROWS).map((row) => (
                        <tr key={row.line} class={row.fault ? "faulty" : ""}>
                            <td>{row.line}</td>
                            {table.columns.map((_, index) => (
                                <td key={index} dir="auto">
                                    {(row.cells[index] ?? "").slice(0, PREVIEW_CHARACTERS)}
                                </td>
                            ))}
                        </tr>
                    ))}
                </tbody>
            </table>
            {table.rows.length > PREVIEW_ROWS && <p class="detail">and {counted(table.rows.length - PREVIEW_ROWS, "more row")}</p>}
        </div>
    );
}

function Faults({ checked }: { checked: Checked }) {
    if (!checked.faults.length) return null;
    return (
        <details class="faults" open>
            <summary>{counted(checked.faults.length, "row")} with faults</summary>
            <ul tabindex={0}>
                {checked.faults.slice(0, SHOWN_FAULTS).map((each) => (
                    <li key={each.line}>
                        Line {each.line}: {each.fault}
                    </li>
                ))}
                {checked.faults.length > SHOWN_FAULTS && <li>and {(checked.faults.length - SHOWN_FAULTS).toLocaleString()} more</li>}
            </ul>
        </details>
    );
}
