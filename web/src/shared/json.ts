// JSON whose integers keep all their digits: people decide by what is shown, and ids are often longer than a number holds.

import type { Json } from "./types.ts";

/** `JSON` as newer browsers have it; older ones round. */
const Exact = JSON as { rawJSON?: (text: string) => Json; isRawJSON?: (value: unknown) => boolean };
/** Text without this has no integer that a number cannot hold. */
const MANY_DIGITS = /\d{16}/;

/** Read JSON. An integer that a number cannot hold becomes an object that is written as it was; see `digitsOf`. */
export function parseJson(text: string): Json {
    const { rawJSON } = Exact;
    if (!rawJSON || !MANY_DIGITS.test(text)) return JSON.parse(text) as Json;
    return JSON.parse(text, (_name: string, value: Json, { source = "" }: { source?: string } = {}) =>
        typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(source) ? rawJSON(source) : value,
    ) as Json;
}

/** The digits of an integer that a number cannot hold; null for every other value. */
export function digitsOf(value: Json | undefined): string | null {
    return Exact.isRawJSON?.(value) ? JSON.stringify(value) : null;
}

export function isObject(value: Json | undefined): value is { [name: string]: Json } {
    return typeof value === "object" && value !== null && !Array.isArray(value) && digitsOf(value) === null;
}
