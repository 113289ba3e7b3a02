// A structured output, shown by its JSON Schema while it grows. What the schema does not know is shown by its value.

import { useState } from "preact/hooks";

import { digitsOf, isObject } from "./json.ts";
import { Markdown } from "./markdown.tsx";
import type { Json, Schema } from "./types.ts";

const FIRST_ITEMS = 100;
const MORE_ITEMS = 1_000;
/** Objects and lists deeper than this are folded. */
const OPEN_DEPTH = 1;
const MOST_COLUMNS = 8;

interface Shown {
    value: Json | undefined;
    schema: Schema;
    root: Schema;
    depth: number;
    /** Whether it may still grow. */
    growing: boolean;
}

/** The output of a run. */
export function Output({ value, schema, growing }: { value: Json; schema: Schema; growing: boolean }) {
    return (
        <div class="output" aria-busy={growing}>
            <Value value={value} schema={schema} root={schema} depth={0} growing={growing} />
        </div>
    );
}

function Value(shown: Shown) {
    const { value, root, growing } = shown;
    if (value === undefined) return <span class="missing">{growing ? "…" : "—"}</span>;
    const schema = resolved(shown.schema, root, value);
    if (value === null) return <span class="missing">none</span>;
    if (typeof value === "boolean") return <span class={`badge ${value ? "yes" : "no"}`}>{value ? "Yes" : "No"}</span>;
    const digits = digitsOf(value);
    if (digits) return <span class="number">{digits}</span>;
    if (typeof value === "number") return <NumberValue value={value} schema={schema} />;
    if (typeof value === "string") return <Text value={value} schema={schema} />;
    if (Array.isArray(value)) return <List {...shown} schema={schema} value={value} />;
    return <Fields {...shown} schema={schema} value={value} />;
}

function NumberValue({ value, schema }: { value: number; schema: Schema }) {
    const { minimum, maximum } = schema;
    if (minimum === undefined || maximum === undefined || maximum <= minimum) {
        return <span class="number">{value}</span>;
    }
    return (
        <span class="badge level">
            {value} of {maximum}
            <meter min={minimum} max={maximum} value={value} aria-label={`${value} of ${maximum}`} />
        </span>
    );
}

function Text({ value, schema }: { value: string; schema: Schema }) {
    if (schema.enum || schema.const !== undefined) return <span class="badge">{value}</span>;
    const time = schema.format === "date-time" ? new Date(value) : null;
    if (time && !Number.isNaN(time.getTime())) return <time dateTime={value}>{time.toLocaleString()}</time>;
    return <Markdown text={value} />;
}

function List(shown: Omit<Shown, "value"> & { value: Json[] }) {
    const { value, schema, root, depth, growing } = shown;
    const [most, setMost] = useState(FIRST_ITEMS);
    const items = schema.items ?? {};
    if (!value.length) return <span class="missing">{growing ? "…" : "empty"}</span>;
    const head = value.slice(0, most);
    const more = value.length > most && (
        <button type="button" class="quiet" onClick={() => setMost(most + MORE_ITEMS)}>
            Show more ({(value.length - most).toLocaleString()} of {value.length.toLocaleString()} are left)
        </button>
    );
    const columns = columnsOf(value, resolved(items, root, value[0]));
    const rest = { root, depth: depth + 1, growing };
    if (columns) {
        return (
            <div class="scrolls" tabindex={0}>
                <table>
                    <thead>
                        <tr>
                            {columns.map((name) => (
                                <th key={name} scope="col">
                                    {label(name, property(items, root, name, value[0]))}
                                </th>
                            ))}
                        </tr>
                    </thead>
                    <tbody>
                        {head.map((row, index) => (
                            <tr key={index}>
                                {columns.map((name) => (
                                    <td key={name}>
                                        <Value {...rest} value={(row as Record<string, Json>)[name]} schema={property(items, root, name, row)} />
                                    </td>
                                ))}
                            </tr>
                        ))}
                    </tbody>
                </table>
                {more}
            </div>
        );
    }
    return (
        <>
            <ul>
                {head.map((item, index) => (
                    <li key={index}>
                        <Value {...rest} value={item} schema={items} />
                    </li>
                ))}
            </ul>
            {more}
        </>
    );
}

function Fields(shown: Omit<Shown, "value"> & { value: { [key: string]: Json } }) {
    const { value, schema, root, depth, growing } = shown;
    const coming = growing ? Object.keys(schema.properties ?? {}) : [];
    const names = [...new Set([...Object.keys(value), ...coming])]; // The value has the order; a stored schema has none.
    const rest = { root, depth: depth + 1, growing };
    const fields = (
        <dl>
            {names.slice(0, MORE_ITEMS).map((name) => (
                <div key={name} class="field">
                    <dt title={property(schema, root, name, value).description}>{label(name, property(schema, root, name, value))}</dt>
                    <dd>
                        <Value {...rest} value={value[name]} schema={property(schema, root, name, value)} />
                    </dd>
                </div>
            ))}
        </dl>
    );
    if (depth < OPEN_DEPTH) return fields;
    return (
        <details>
            <summary>
                {schema.title ?? "Object"} · {names.length} {names.length === 1 ? "field" : "fields"}
            </summary>
            {fields}
        </details>
    );
}

/** Say how a list of objects is shown as a table; null where it is none. */
function columnsOf(rows: Json[], schema: Schema): string[] | null {
    const names = new Set<string>();
    for (const row of rows.slice(0, FIRST_ITEMS)) {
        if (!isObject(row)) return null;
        for (const [name, value] of Object.entries(row)) {
            if (typeof value === "object" && value !== null && !digitsOf(value)) return null;
            names.add(name);
        }
    }
    for (const name of Object.keys(schema.properties ?? {})) names.add(name);
    return names.size && names.size <= MOST_COLUMNS && rows.every(isObject)
        ? [...names]
        : null;
}

function property(schema: Schema, root: Schema, name: string, value: Json | undefined): Schema {
    return resolved(schema, root, value).properties?.[name] ?? {};
}

/** Follow references, and of alternatives choose the one that the value fits. */
function resolved(schema: Schema, root: Schema, value: Json | undefined): Schema {
    let found = schema;
    for (let steps = 0; steps < 16; steps++) {
        if (found.$ref) {
            const { $ref, ...besides } = found;
            found = { ...(root.$defs?.[$ref.split("/").pop() ?? ""] ?? {}), ...besides };
            continue;
        }
        const choices = found.anyOf ?? found.oneOf ?? (found.allOf?.length === 1 ? found.allOf : undefined);
        if (!choices) return found;
        const { anyOf: _any, oneOf: _one, allOf: _all, ...besides } = found;
        const fitting = choices.find((choice) => fits(resolved(choice, root, value), value)) ?? {};
        found = { ...fitting, ...besides };
    }
    return {};
}

function fits(schema: Schema, value: Json | undefined): boolean {
    const types = schema.type === undefined ? [] : [schema.type].flat();
    if (types.length) {
        const is = value === null ? "null" : Array.isArray(value) ? "array" : digitsOf(value) ? "number" : typeof value;
        if (!types.includes(is) && !(is === "number" && types.includes("integer"))) return false;
    }
    if (!schema.properties || typeof value !== "object" || value === null || Array.isArray(value)) return true;
    const constant = Object.entries(schema.properties).every(
        ([name, each]) => each.const === undefined || value[name] === undefined || value[name] === each.const,
    );
    return constant && Object.keys(value).every((name) => name in (schema.properties ?? {}));
}

function label(name: string, schema: Schema): string {
    const words = schema.title ?? name.replace(/[_-]+/g, " ");
    return words.charAt(0).toUpperCase() + words.slice(1);
}
