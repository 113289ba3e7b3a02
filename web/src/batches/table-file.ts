// Read a file of rows as people have them: CSV with any delimiter, quoting and encoding, or JSON lines.

import Papa from "papaparse";

export const ENCODINGS = ["utf-8", "windows-1252", "windows-1250", "windows-1251", "utf-16le", "utf-16be", "shift_jis", "gb18030"];
export const DELIMITERS: Record<string, string> = { ",": "Comma", ";": "Semicolon", "\t": "Tab", "|": "Bar" };
const QUERY_NAMES = ["query", "question", "prompt", "text", "input", "message"];
const ID_NAMES = ["custom_id", "id", "key"];
const LONGEST_ID = 128;
const SLICE_ROWS = 5_000;

export interface Row {
    line: number;
    cells: string[];
    /** What is wrong with it as a row of the file; empty where nothing is. */
    fault: string;
}

export interface TableFile {
    name: string;
    kind: "csv" | "jsonl";
    encoding: string;
    delimiter: string;
    columns: string[];
    rows: Row[];
}

export interface Reading {
    encoding?: string;
    delimiter?: string;
    header: boolean;
}

export interface Item {
    custom_id: string;
    query: string;
}

export interface Checked {
    items: Item[];
    faults: { line: number; fault: string }[];
}

/** Read a file. Raises an `Error` that says what to do where it is no table. */
export function readTable(name: string, bytes: Uint8Array<ArrayBuffer>, reading: Reading): TableFile {
    if (bytes[0] === 0x50 && bytes[1] === 0x4b && bytes[2] === 3) {
        throw new Error("This is a workbook or another archive. Export the sheet as CSV and drop that.");
    }
    const encoding = reading.encoding || encodingOf(bytes);
    const text = new TextDecoder(encoding).decode(bytes);
    if (!text.trim()) throw new Error("The file is empty.");
    const lines = /\.(jsonl|ndjson)$/i.test(name) || (!reading.delimiter && text.trimStart().startsWith("{"));
    const table = lines ? readLines(text) : readCsv(text, reading);
    if (!table.rows.length) throw new Error("The file has no rows below its header.");
    return { name, kind: lines ? "jsonl" : "csv", encoding, ...table };
}

/** Guess an encoding: by its mark, by the zeros of UTF-16, as UTF-8 where it is, else as Western Windows writes. */
export function encodingOf(bytes: Uint8Array<ArrayBuffer>): string {
    if (bytes[0] === 0xff && bytes[1] === 0xfe) return "utf-16le";
    if (bytes[0] === 0xfe && bytes[1] === 0xff) return "utf-16be";
    const head = bytes.subarray(0, 1_000);
    const zeros = [0, 0];
    head.forEach((byte, index) => {
        if (byte === 0) zeros[index % 2] = (zeros[index % 2] ?? 0) + 1;
    });
    if ((zeros[1] ?? 0) > head.length / 4) return "utf-16le";
    if ((zeros[0] ?? 0) > head.length / 4) return "utf-16be";
    try {
        new TextDecoder("utf-8", { fatal: true }).decode(bytes);
        return "utf-8";
    } catch {
        return "windows-1252";
    }
}

type Table = Pick<TableFile, "delimiter" | "columns" | "rows">;

function readCsv(whole: string, reading: Reading): Table {
    const said = /^sep=(.)\r?\n/i.exec(whole); // Excel writes its delimiter before the header.
    const text = said ? whole.slice(said[0].length) : whole;
    let line = said ? 2 : 1;
    let at = 0;
    let delimiter = reading.delimiter || said?.[1] || guessDelimiter(text);
    const found: Row[] = [];
    Papa.parse<string[]>(text, {
        delimiter,
        step: ({ data, errors, meta }) => {
            delimiter = meta.delimiter;
            const isBlank = data.length === 1 && !data[0]?.trim();
            if (!isBlank) found.push({ line, cells: data, fault: errors.map(faultOf).find(Boolean) ?? "" });
            for (; at < meta.cursor; at++) if (text[at] === "\n" || (text[at] === "\r" && text[at + 1] !== "\n")) line++;
        },
    });
    const first = found[0];
    const width = first?.cells.length ?? 0;
    const columns = Array.from({ length: width }, (_, index) => (reading.header && first?.cells[index]?.trim()) || `Column ${index + 1}`);
    const rows = reading.header ? found.slice(1) : found;
    for (const row of rows) {
        if (!row.fault && row.cells.length !== width) {
            row.fault = `It has ${row.cells.length} ${row.cells.length === 1 ? "field" : "fields"}, the first line has ${width}.`;
        }
    }
    return { delimiter, columns, rows };
}

/** Guess by the first lines; blank ones would count against a delimiter. */
function guessDelimiter(text: string): string {
    return Papa.parse<string[]>(text, { preview: 20, skipEmptyLines: "greedy" }).meta.delimiter;
}

function faultOf(error: Papa.ParseError): string {
    if (error.code === "MissingQuotes") return "A quote is opened and never closed.";
    return error.type === "Quotes" ? "A quote stands where none may." : "";
}

function readLines(text: string): Table {
    const columns: string[] = [];
    const places = new Map<string, number>();
    const rows: Row[] = [];
    for (const [index, line] of text.split(/\r?\n/).entries()) {
        if (!line.trim()) continue;
        const row: Row = { line: index + 1, cells: [], fault: "" };
        rows.push(row);
        try {
            const value: unknown = JSON.parse(line);
            if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error("It is not a JSON object.");
            for (const [name, cell] of Object.entries(value)) {
                let place = places.get(name);
                if (place === undefined) {
                    place = columns.push(name) - 1;
                    places.set(name, place);
                }
                row.cells[place] = typeof cell === "string" ? cell : JSON.stringify(cell);
            }
        } catch (error) {
            row.fault = error instanceof SyntaxError ? "It is not JSON." : String((error as Error).message);
        }
    }
    return { delimiter: "", columns, rows };
}

/** Guess which column is asked, and which names the rows; -1 where the line number does. */
export function guess(table: TableFile): { query: number; id: number } {
    const names = table.columns.map((name) => name.toLowerCase());
    const named = QUERY_NAMES.map((name) => names.indexOf(name)).find((index) => index >= 0);
    const head = table.rows.slice(0, 100);
    const lengths = table.columns.map((_, index) => head.reduce((sum, row) => sum + (row.cells[index]?.length ?? 0), 0));
    const query = named ?? lengths.indexOf(Math.max(...lengths));
    const id = ID_NAMES.map((name) => names.indexOf(name)).find((index) => index >= 0 && index !== query) ?? -1;
    return { query, id };
}

/** Make items of the rows that are right, and say what is wrong with the others. Gives the page a breath now and then. */
export async function check(table: TableFile, query: number, id: number): Promise<Checked> {
    const checked: Checked = { items: [], faults: [] };
    const ids = new Set<string>();
    for (const [index, row] of table.rows.entries()) {
        if (index % SLICE_ROWS === SLICE_ROWS - 1) await new Promise((resolve) => setTimeout(resolve));
        const asked = row.cells[query] ?? "";
        const name = id < 0 ? `line-${row.line}` : (row.cells[id] ?? "").trim();
        const fault =
            row.fault ||
            (asked.trim() ? "" : "Its query is empty.") ||
            (name ? "" : "Its id is empty.") ||
            (name.length > LONGEST_ID ? `Its id has more than ${LONGEST_ID} characters.` : "") ||
            (ids.has(name) ? `Another row has the id ${name}.` : "");
        if (fault) {
            checked.faults.push({ line: row.line, fault });
        } else {
            ids.add(name);
            checked.items.push({ custom_id: name, query: asked });
        }
    }
    return checked;
}

/** Write items as JSON lines. */
export function linesOfItems(items: Item[]): Blob {
    const parts: string[] = [];
    for (let start = 0; start < items.length; start += SLICE_ROWS) {
        parts.push(items.slice(start, start + SLICE_ROWS).map((item) => `${JSON.stringify(item)}\n`).join(""));
    }
    return new Blob(parts, { type: "application/x-ndjson" });
}
