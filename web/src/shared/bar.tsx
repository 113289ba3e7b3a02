import type { ComponentChildren } from "preact";

import { signOut } from "./api.ts";

const PAGES = { chat: ["./", "Chat"], batches: ["batches", "Batches"], ops: ["ops", "Operations"] } as const;

/** The bar at the top of a page: the ways to the others, and out. */
export function Bar({ page, children }: { page: keyof typeof PAGES; children?: ComponentChildren }) {
    return (
        <header class="bar">
            {children}
            <strong class="brand">agent-relay</strong>
            <nav class="links" aria-label="Pages">
                {Object.entries(PAGES)
                    .filter(([name]) => name !== page)
                    .map(([name, [href, label]]) => (
                        <a key={name} href={href}>
                            {label}
                        </a>
                    ))}
                <a href="docs">API</a>
                <button type="button" class="quiet" onClick={() => void (page === "ops" ? signOut("console/operator-session", "ops") : signOut("console/session", ""))}>
                    Sign out
                </button>
            </nav>
        </header>
    );
}
