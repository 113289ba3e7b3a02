import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Hash all files that a build is made of, by path and content: everything in `web/` but what npm installs. */
export function sourceHash(folder: string): string {
    const hash = createHash("sha256");
    const paths = readdirSync(folder, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
        .filter((path) => !path.startsWith("node_modules"))
        .sort();
    for (const path of paths) {
        const content = createHash("sha256").update(readFileSync(join(folder, path))).digest("hex");
        hash.update(`${content}  ${path}\n`);
    }
    return hash.digest("hex");
}
