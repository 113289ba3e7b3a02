import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import type { Column } from "./types.ts";

export interface Line {
    label: string;
    values: Column;
}

const HEIGHT = 150;
const COLOURS = {
    light: ["#1f5fbf", "#a4262c", "#7a4d00", "#146c3a", "#6b3fa0", "#00707a", "#b0006d", "#4f5a69"],
    dark: ["#8ab8ff", "#ff9a94", "#f0c36d", "#7fd6a0", "#c9a6ff", "#6fd3dd", "#ff8fd0", "#a9b3c1"],
};
const GRID = { light: "#d3d9e2", dark: "#363d49" };
const TEXT = { light: "#4f5a69", dark: "#a9b3c1" };
const dark = matchMedia("(prefers-color-scheme: dark)");

/** A plot over time, with its newest values, or those under the pointer, as text beside it. */
export function Plot({ title, at, lines, format }: { title: string; at: number[]; lines: Line[]; format: (value: number) => string }) {
    const box = useRef<HTMLDivElement>(null);
    const plot = useRef<uPlot | null>(null);
    const [pointed, setPointed] = useState<number | null>(null);
    const [scheme, setScheme] = useState<"light" | "dark">(dark.matches ? "dark" : "light");
    const labels = JSON.stringify(lines.map((line) => line.label));
    const data: uPlot.AlignedData = [at, ...lines.map((line) => line.values)];
    useEffect(() => {
        const change = () => setScheme(dark.matches ? "dark" : "light");
        dark.addEventListener("change", change);
        return () => dark.removeEventListener("change", change);
    }, []);
    useEffect(() => {
        const element = box.current;
        if (!element) return;
        const axis = { stroke: TEXT[scheme], grid: { stroke: GRID[scheme], width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
        const made = new uPlot(
            {
                width: element.clientWidth || 300,
                height: HEIGHT,
                legend: { show: false },
                cursor: { y: false, drag: { x: false, y: false } },
                padding: [8, 8, 0, 0],
                scales: { x: { time: true }, y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
                series: [
                    {},
                    ...lines.map((line, index) => ({
                        label: line.label,
                        stroke: colour(scheme, index),
                        width: 1.5,
                        points: { size: 4 },
                    })),
                ],
                axes: [
                    { ...axis, space: 60, size: 26, values: (_plot, splits) => splits.map(clock) },
                    { ...axis, size: 58, values: (_plot, splits) => splits.map((value) => format(value)) },
                ],
                hooks: { setCursor: [(its) => setPointed(its.cursor.idx ?? null)] },
            },
            data,
            element,
        );
        plot.current = made;
        const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
        observer.observe(element);
        return () => {
            observer.disconnect();
            made.destroy();
        };
    }, [labels, scheme]);
    useEffect(() => plot.current?.setData(data), [at, lines]);
    const shown = lines.map((line) => {
        const value = pointed === null ? line.values.at(-1) : line.values[pointed];
        return { label: line.label, text: value === null || value === undefined ? "—" : format(value) };
    });
    return (
        <figure class="plot">
            <figcaption>
                {title}
                {pointed !== null && at[pointed] !== undefined && <span class="detail"> at {clock(at[pointed])}</span>}
            </figcaption>
            <div ref={box} class="canvas" role="img" aria-label={`${title}: ${shown.map((line) => `${line.label} ${line.text}`).join(", ")}`} />
            <ul class="legend">
                {shown.map((line, index) => (
                    <li key={line.label}>
                        <span class="mark" style={{ background: colour(scheme, index) }} aria-hidden="true" />
                        <span class="label">{line.label}</span> <strong>{line.text}</strong>
                    </li>
                ))}
            </ul>
        </figure>
    );
}

function colour(scheme: "light" | "dark", index: number): string {
    return COLOURS[scheme][index % COLOURS[scheme].length] ?? TEXT[scheme];
}

function clock(at: number): string {
    return new Date(at * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}
