import { resolve } from "node:path";

import { defineConfig } from "vite";

import { sourceHash } from "./source-hash.ts";

// Built files come with the Python package, so that nobody needs Node to run the service. Their names carry a hash of
// their content. `source.sha256` says which source they were built from; a test compares it.
export default defineConfig({
    base: "./",
    build: {
        outDir: resolve(import.meta.dirname, "../api/console/static"),
        emptyOutDir: true,
        assetsDir: "console/assets",
        assetsInlineLimit: 0,
        modulePreload: { polyfill: false },
        target: "es2022",
        rollupOptions: {
            input: ["index.html", "batches.html", "ops.html", "sign-in.html"].map((page) => resolve(import.meta.dirname, page)),
        },
    },
    plugins: [
        {
            name: "source-hash",
            generateBundle() {
                this.emitFile({ type: "asset", fileName: "source.sha256", source: `${sourceHash(import.meta.dirname)}\n` });
            },
        },
    ],
});
