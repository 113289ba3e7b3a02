/** Show a number, with no more digits than it deserves. */
export function number(value: number): string {
    return value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });
}

/** Show a number of things: "1 row", "2,000 rows". */
export function counted(count: number, thing: string): string {
    return `${count.toLocaleString()} ${thing}${count === 1 ? "" : "s"}`;
}

/** Show seconds, in the unit that suits. */
export function seconds(value: number): string {
    if (value < 1) return `${number(value * 1000)} ms`;
    if (value < 120) return `${number(value)} s`;
    if (value < 7_200) return `${number(value / 60)} min`;
    return `${number(value / 3600)} h`;
}

/** How many seconds lie between two times; null where one is not known. */
export function secondsBetween(from: string | null | undefined, to: string | null | undefined): number | null {
    return from && to ? Math.max(0, (new Date(to).getTime() - new Date(from).getTime()) / 1000) : null;
}

/** Show an amount of US dollars; an answer often costs far less than a cent. */
export function dollars(value: number): string {
    const amount = value >= 1 ? value.toFixed(2) : value.toLocaleString("en-US", { maximumSignificantDigits: 3 });
    return `$${amount}`;
}

export function dateTime(value: string): string {
    return new Date(value).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}
