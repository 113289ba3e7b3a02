import { useEffect, useRef, useState } from "preact/hooks";

const KINDS = ["curl", "Python", "JavaScript"] as const;
type Kind = (typeof KINDS)[number];

/** A query as code that asks it again. */
export function Snippets({ agentType, query, onClose }: { agentType: string; query: string; onClose: () => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    const [kind, setKind] = useState<Kind>("curl");
    const [copied, setCopied] = useState(false);
    useEffect(() => dialog.current?.showModal(), []);
    const code = snippet(kind, new URL("api/v1", location.href).href, { agent_type: agentType, query });
    return (
        <dialog ref={dialog} class="snippets" aria-labelledby="snippets-title" onClose={onClose}>
            <h2 id="snippets-title">This query as code</h2>
            <fieldset class="kinds">
                <legend class="unseen">Language</legend>
                {KINDS.map((each) => (
                    <label key={each}>
                        <input
                            type="radio"
                            name="kind"
                            checked={each === kind}
                            onChange={() => {
                                setKind(each);
                                setCopied(false);
                            }}
                        />
                        {each}
                    </label>
                ))}
            </fieldset>
            <pre tabindex={0}>
                <code>{code}</code>
            </pre>
            <p class="detail">It reads the key from API_KEY and the user's UUID from USER_ID.</p>
            <div class="choices">
                <button
                    type="button"
                    onClick={() => {
                        void navigator.clipboard?.writeText(code).then(() => setCopied(true));
                    }}
                >
                    {copied ? "Copied" : "Copy"}
                </button>
                <button type="button" class="primary" onClick={() => dialog.current?.close()}>
                    Close
                </button>
            </div>
        </dialog>
    );
}

export function snippet(kind: Kind, api: string, body: { agent_type: string; query: string }): string {
    const json = JSON.stringify(body);
    switch (kind) {
        case "curl":
            return [
                `curl -sN '${api}/agent/stream' \\`,
                `  -H "X-API-Key: $API_KEY" -H "X-User-ID: $USER_ID" \\`,
                `  -H 'Content-Type: application/json' \\`,
                `  -d '${json.replaceAll("'", "'\\''")}'`,
            ].join("\n");
        case "Python":
            return [
                "import json, os, urllib.request",
                "",
                `body = json.dumps({"agent_type": ${JSON.stringify(body.agent_type)}, "query": ${JSON.stringify(body.query)}})`,
                "headers = {",
                '    "X-API-Key": os.environ["API_KEY"],',
                '    "X-User-ID": os.environ["USER_ID"],',
                '    "Content-Type": "application/json",',
                "}",
                `request = urllib.request.Request(${JSON.stringify(`${api}/agent/query`)}, body.encode(), headers)`,
                "with urllib.request.urlopen(request) as response:",
                '    print(json.load(response)["output"])',
            ].join("\n");
        case "JavaScript":
            return [
                `const response = await fetch(${JSON.stringify(`${api}/agent/query`)}, {`,
                '    method: "POST",',
                "    headers: {",
                '        "X-API-Key": process.env.API_KEY,',
                '        "X-User-ID": process.env.USER_ID,',
                '        "Content-Type": "application/json",',
                "    },",
                `    body: JSON.stringify(${json}),`,
                "});",
                "console.log((await response.json()).output);",
            ].join("\n");
    }
}
