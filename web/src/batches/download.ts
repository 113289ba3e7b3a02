// Results as a CSV: a column for each field of the output.

import { openStream } from "../shared/api.ts";
import { isObject } from "../shared/json.ts";
import { linesOf } from "../shared/stream.ts";
import type { BatchLine, Json, Schema } from "../shared/types.ts";

/** Spreadsheets run a cell that begins so as a formula; an apostrophe before it makes it text. */
const FORMULA = /^[=+\-@\t\r]/;
const NUMBER = /^-?\d+(\.\d+)?$/;

/** Read all results of a batch and write them as a CSV, in UTF-8 with a mark, as spreadsheets want it. */
export async function resultsAsCsv(batchId: string, schema: Schema): Promise<Blob> {
    const connection = new AbortController();
    const response = await openStream(`batches/${batchId}/results`, connection.signal);
    const fields = new Set(Object.keys(schema.properties ?? {}));
    const results: BatchLine[] = [];
    let hasFields = fields.size > 0;
    for await (const line of linesOf<BatchLine>(response, connection)) {
        if (line.custom_id === undefined) continue;
        results.push(line);
        const { output } = line;
        if (isObject(output)) {
            hasFields = true;
            for (const name of Object.keys(output)) fields.add(name);
        }
    }
    const names = hasFields ? [...fields] : ["output"];
    const parts = [`\ufeff${row(["custom_id", "status", ...names, "error_code", "error_message", "run_id"])}`];
    for (const result of results) {
        const output = result.output ?? null;
        const values = hasFields ? names.map((name) => (isObject(output) ? output[name] : undefined)) : [output];
        parts.push(
            row([
                result.custom_id ?? "",
                result.status,
                ...values,
                result.error?.code ?? "",
                result.error?.message ?? "",
                result.run_id ?? "",
            ]),
        );
    }
    return new Blob(parts, { type: "text/csv" });
}

function row(values: (Json | undefined)[]): string {
    return `${values.map(cell).join(",")}\r\n`;
}

function cell(value: Json | undefined): string {
    if (value === undefined || value === null) return "";
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const safe = FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Have the browser save a file. */
export function save(content: Blob, name: string): void {
    const address = URL.createObjectURL(content);
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
