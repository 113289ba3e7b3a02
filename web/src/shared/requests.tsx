// What a run asks of people: approvals, questions, results from outside. All of it is text of an agent's: it is shown as
// text, with marks that turn or hide other text written out, so that people approve what will be done.

import { useEffect, useRef, useState } from "preact/hooks";

import { messageOf, Refused } from "./api.ts";
import { digitsOf, parseJson } from "./json.ts";
import { LongText } from "./markdown.tsx";
import type { Json, RunRequest, Schema } from "./types.ts";

type Send = (requestId: string, answer: Record<string, Json>) => Promise<void>;

/** Of as many values, each is a button; of more, a list. */
const MOST_BUTTONS = 6;
/** How deep a schema is looked into for what it allows. */
const MOST_STEPS = 8;
/** What turns text around, or is not seen: controls and marks, without line ends, tabs and the joiners of scripts and emoji. */
const UNSEEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu;

/** The requests of a run, in the order of asking; while it waits, those that are open have a form. */
export function Requests({ requests, status, send }: { requests: RunRequest[]; status: string; send: Send }) {
    if (!requests.length) return null;
    return (
        <ol class="requests" aria-label="Requests of the agent">
            {requests.map((request, index) => (
                <li key={`${index} ${request.request_id}`} class="request" data-kind={request.kind} data-open={request.answer === null && status === "waiting"}>
                    <RequestView request={request} status={status} send={send} />
                </li>
            ))}
        </ol>
    );
}

function RequestView({ request, status, send }: { request: RunRequest; status: string; send: Send }) {
    return (
        <>
            <p class="asks">
                {ASKS[request.kind] ?? "It waits for an answer to"} <code dir="auto">{request.tool_name}</code>
                {request.kind === "approval" && "?"}
            </p>
            {request.prompt && <LongText text={plain(request.prompt)} />}
            {request.kind === "approval" || !request.prompt ? (
                <Part title="Arguments" value={request.args} />
            ) : (
                <details>
                    <summary>Arguments</summary>
                    <Part title="" value={request.args} />
                </details>
            )}
            {request.answer && <Answered request={request} />}
            {!request.answer && ENDED.has(status) && <p class="detail">Not answered.</p>}
            {!request.answer && status === "waiting" && <Form request={request} send={send} />}
        </>
    );
}

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const ASKS: Record<string, string> = {
    approval: "May it call",
    question: "It asks, with",
    external: "It waits for the result of",
};

function Part({ title, value }: { title: string; value: Json }) {
    return (
        <>
            {title && <h3>{title}</h3>}
            <LongText text={written(value)} />
        </>
    );
}

function Answered({ request }: { request: RunRequest }) {
    const { answer } = request;
    if (!answer) return null;
    const { approve, args, message, result, error } = answer;
    const what = approve === true ? (args === undefined ? "Approved" : "Approved with other arguments") : approve === false ? "Rejected" : error === undefined ? "Answered" : "Answered with an error";
    const value = args ?? message ?? error ?? result;
    const when = request.answered_at ? new Date(request.answered_at).toLocaleString() : "";
    return (
        <div class="answered">
            <p>
                <span class={`badge ${approve === false || error !== undefined ? "warn" : "yes"}`}>{what}</span>{" "}
                <span class="detail" title={request.answered_by ? `By the user ${request.answered_by}` : undefined}>
                    {when}
                </span>
            </p>
            {value !== undefined && <LongText text={typeof value === "string" ? plain(value) : written(value)} />}
        </div>
    );
}

/** What a person does with a request: the ways to answer, or the field of one of them. */
type Way = "" | "args" | "reject" | "error";

function Form({ request, send }: { request: RunRequest; send: Send }) {
    const [way, setWay] = useState<Way>("");
    const [text, setText] = useState("");
    const [busy, setBusy] = useState(false);
    const [problem, setProblem] = useState("");
    const give = async (answer: Record<string, Json>) => {
        setBusy(true);
        setProblem("");
        try {
            await send(request.request_id, answer);
        } catch (error) {
            setProblem(refusalOf(error));
        }
        setBusy(false);
    };
    const choose = (chosen: Way, begin = "") => {
        setWay(chosen);
        setText(begin);
        setProblem("");
    };
    const needsText = way === "" || way === "error";
    const submit = () => {
        if (busy || (needsText && !text.trim())) return;
        if (way === "reject") return void give(text.trim() ? { approve: false, message: text } : { approve: false });
        if (way === "error") return void give({ error: text });
        if (way === "args") {
            try {
                return void give({ approve: true, args: parseJson(text) });
            } catch (error) {
                return setProblem(`The arguments are no JSON: ${messageOf(error)}`);
            }
        }
        return void give({ result: resultOf(text, request.schema) });
    };
    const isApproval = request.kind === "approval";
    const values = isApproval || way ? null : choicesOf(request.schema);
    const field = isApproval ? way !== "" : values === null;
    return (
        <form
            onSubmit={(event) => {
                event.preventDefault();
                submit();
            }}
        >
            {field && <Field way={way} request={request} text={text} onText={setText} />}
            {values && <Choices values={values} busy={busy} onChoose={(value) => void give({ result: value })} />}
            {problem && (
                <p class="failure lines" role="alert">
                    {problem}
                </p>
            )}
            <div class="actions">
                {isApproval && !way && (
                    <>
                        <button type="button" class="primary" disabled={busy} onClick={() => void give({ approve: true })}>
                            Approve
                        </button>
                        <button type="button" disabled={busy} onClick={() => choose("args", written(request.args))}>
                            Edit arguments
                        </button>
                        <button type="button" disabled={busy} onClick={() => choose("reject")}>
                            Reject
                        </button>
                    </>
                )}
                {field && (
                    <button type="submit" class={way === "reject" || way === "error" ? "danger" : "primary"} disabled={busy || (needsText && !text.trim())}>
                        {way ? SUBMIT[way] : "Answer"}
                    </button>
                )}
                {!isApproval && !way && (
                    <button type="button" class="quiet" disabled={busy} onClick={() => choose("error")}>
                        Report an error
                    </button>
                )}
                {way && (
                    <button type="button" class="quiet" disabled={busy} onClick={() => choose("")}>
                        Back
                    </button>
                )}
            </div>
        </form>
    );
}

const SUBMIT = { args: "Approve with these arguments", reject: "Reject", error: "Report this error" };

const LABELS: Record<Way, string> = {
    "": "Answer",
    args: "Arguments, as JSON",
    reject: "What the agent is told (not required)",
    error: "What went wrong, which the agent is told",
};

function Field({ way, request, text, onText }: { way: Way; request: RunRequest; text: string; onText: (text: string) => void }) {
    const area = useRef<HTMLTextAreaElement>(null);
    useEffect(() => {
        if (way) area.current?.focus();
    }, [way]);
    const takesText = isText(typesOf(request.schema));
    const label = way || takesText ? LABELS[way] : request.kind === "external" ? "Result, as JSON or text" : "Answer, as JSON or text";
    const shape = way === "args" || (!way && !takesText) ? request.schema : null;
    return (
        <>
            <label>
                {label}
                <textarea
                    ref={area}
                    class={way === "args" ? "code" : undefined}
                    rows={way === "args" ? Math.min(12, text.split("\n").length) : 2}
                    dir={way === "args" ? "ltr" : "auto"}
                    spellcheck={way !== "args"}
                    value={text}
                    onInput={(event) => onText(event.currentTarget.value)}
                    onKeyDown={(event) => {
                        if (event.key !== "Enter" || event.shiftKey || event.isComposing || way === "args") return;
                        event.preventDefault();
                        event.currentTarget.form?.requestSubmit();
                    }}
                />
            </label>
            {shape && (
                <details>
                    <summary>What fits (JSON Schema)</summary>
                    <LongText text={written(shape as unknown as Json)} />
                </details>
            )}
        </>
    );
}

function Choices({ values, busy, onChoose }: { values: Json[]; busy: boolean; onChoose: (value: Json) => void }) {
    const [chosen, setChosen] = useState("");
    if (values.length <= MOST_BUTTONS) {
        return (
            <div class="actions" role="group" aria-label="Answers">
                {values.map((value, index) => (
                    <button key={index} type="button" disabled={busy} dir="auto" onClick={() => onChoose(value)}>
                        {named(value)}
                    </button>
                ))}
            </div>
        );
    }
    return (
        <div class="actions">
            <label>
                Answer{" "}
                <select value={chosen} onChange={(event) => setChosen(event.currentTarget.value)}>
                    <option value="">Choose…</option>
                    {values.map((value, index) => (
                        <option key={index} value={String(index)}>
                            {named(value)}
                        </option>
                    ))}
                </select>
            </label>
            <button type="button" class="primary" disabled={busy || !chosen} onClick={() => onChoose(values[Number(chosen)] ?? null)}>
                Answer
            </button>
        </div>
    );
}

/** List all values that a schema allows; null where they cannot be listed. */
function choicesOf(schema: Schema | null, root: Schema | null = schema, depth = 0): Json[] | null {
    if (!schema || depth > MOST_STEPS) return null;
    if (schema.$ref) return choicesOf(defined(schema.$ref, root), root, depth + 1);
    if (schema.const !== undefined) return [schema.const];
    if (schema.enum?.length) return schema.enum;
    if (schema.type === "boolean") return [true, false];
    if (schema.type === "null") return [null];
    const parts = (schema.anyOf ?? schema.oneOf)?.map((part) => choicesOf(part, root, depth + 1));
    return parts?.length && parts.every((part) => part !== null) ? parts.flat() : null;
}

function named(value: Json): string {
    if (typeof value === "boolean") return value ? "Yes" : "No";
    if (value === null) return "None";
    return typeof value === "string" ? plain(value) || "(empty)" : written(value);
}

/** Read an answer: of a text as it is typed, else as JSON, or as text where it is none. */
function resultOf(text: string, schema: Schema | null): Json {
    const types = typesOf(schema);
    if (isText(types)) return text;
    try {
        const value = parseJson(text);
        return types.size && types.has("string") && !types.has(typeOf(value)) ? text : value;
    } catch {
        return text;
    }
}

/** List the types that a schema allows; none where it does not say. */
function typesOf(schema: Schema | null, root: Schema | null = schema, depth = 0): Set<string> {
    if (!schema || depth > MOST_STEPS) return new Set();
    if (schema.$ref) return typesOf(defined(schema.$ref, root), root, depth + 1);
    const parts = schema.anyOf ?? schema.oneOf ?? [];
    return new Set([...[schema.type ?? []].flat(), ...parts.flatMap((part) => [...typesOf(part, root, depth + 1)])]);
}

function isText(types: Set<string>): boolean {
    return types.size === 1 && types.has("string");
}

function typeOf(value: Json): string {
    if (value === null) return "null";
    if (Array.isArray(value)) return "array";
    return digitsOf(value) ? "number" : typeof value;
}

function defined($ref: string, root: Schema | null): Schema | null {
    return root?.$defs?.[$ref.split("/").pop() ?? ""] ?? null;
}

function refusalOf(error: unknown): string {
    const errors = error instanceof Refused ? (error.problem.errors ?? []).slice(0, 10) : [];
    const where = (pointer: string) => pointer.replace(/^\/answers\/0\/?/, "").replaceAll("/", ".");
    return [messageOf(error), ...errors.map((each) => `${where(each.pointer)}: ${each.message}`.replace(/^: /, ""))].join("\n");
}

/** Write JSON for people who decide by it. */
function written(value: Json): string {
    return plain(JSON.stringify(value, null, 2) ?? "null");
}

/** Write out what turns text around or is not seen, as JSON does: a text must not look like another. */
function plain(text: string): string {
    return text.replace(UNSEEN, (mark) => mark.split("").map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`).join(""));
}
