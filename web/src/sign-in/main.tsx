import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import "../shared/base.css";
import "./sign-in.css";
import { messageOf, Refused, request, RETURN_TO } from "../shared/api.ts";

const PAGES = /^(batches|ops)?(\?(thread|batch|run)=[\w-]+)?$/;
const given = new URLSearchParams(location.hash.slice(1)).get("code") ?? "";
if (given) sessionStorage.removeItem(RETURN_TO);
/** The page of operations takes the key of an operator, and has a session of its own. */
const forOperators = (sessionStorage.getItem(RETURN_TO) ?? "").startsWith("ops");
const SESSION = forOperators ? "console/operator-session" : "console/session";

/** Sign in with the code of a link, or with a key. The key goes to the service once and is kept nowhere here. */
function SignIn({ code }: { code: string }) {
    const [busy, setBusy] = useState(code !== "");
    const [problem, setProblem] = useState("");
    const send = async (body: Record<string, string>) => {
        setBusy(true);
        setProblem("");
        try {
            await request(SESSION, { method: "POST", body });
            enter();
        } catch (error) {
            if ("code" in body && (await isSignedIn())) return enter();
            setBusy(false);
            setProblem(error instanceof Refused && error.status === 422 ? "The user must be a UUID." : messageOf(error));
        }
    };
    useEffect(() => {
        if (code) void send({ code });
        else void isSignedIn().then((is) => is && enter());
    }, []);
    return (
        <main class="sign-in">
            <h1>agent-relay</h1>
            <form
                onSubmit={(event) => {
                    event.preventDefault();
                    const data = new FormData(event.currentTarget);
                    const user = String(data.get("user") ?? "").trim();
                    void send({ key: String(data.get("key")).trim(), ...(user && { user_id: user }) });
                }}
            >
                <label>
                    {forOperators ? "Key of an operator" : "API key"}
                    <input name="key" type="password" required autocomplete="off" spellcheck={false} disabled={busy} />
                </label>
                {!forOperators && (
                    <details>
                        <summary>Act as a user</summary>
                        <label>
                            User (UUID)
                            <input name="user" spellcheck={false} autocomplete="off" disabled={busy} />
                        </label>
                        <p class="detail">Threads belong to a user. Without one, you see those of the tenant's user of this page.</p>
                    </details>
                )}
                {problem && (
                    <p class="failure" role="alert">
                        {problem}
                    </p>
                )}
                <button type="submit" class="primary" disabled={busy}>
                    {busy ? "Signing in…" : "Sign in"}
                </button>
                {!forOperators && <a href="ops">Operators sign in here</a>}
            </form>
        </main>
    );
}

async function isSignedIn(): Promise<boolean> {
    try {
        await request(SESSION);
        return true;
    } catch {
        return false;
    }
}

function enter(): void {
    const wanted = sessionStorage.getItem(RETURN_TO) ?? "";
    sessionStorage.removeItem(RETURN_TO);
    location.replace(PAGES.test(wanted) ? `./${wanted}` : "./");
}

if (location.hash) history.replaceState(null, "", location.pathname);
const place = document.getElementById("app");
if (place) render(<SignIn code={given} />, place);
