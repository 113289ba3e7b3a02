// The client against a real service. BASE_URL, API_KEY, STAGE and FOLDER come from tests/acceptance/test_javascript_client.py;
// STAGE is an address at which the processes of the service can be killed and started.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { test } from "node:test";
import { AgentRelay, Refused } from "@agent-relay/client";

const { BASE_URL: baseUrl, API_KEY: apiKey, STAGE, FOLDER } = process.env;

const relayOf = (options = {}) => new AgentRelay({ baseUrl, apiKey, userId: randomUUID(), ...options });
const stage = async (what) => assert.ok((await fetch(`${STAGE}/${what}`, { method: "POST" })).ok);
const newFile = () => `${FOLDER}/${randomUUID()}`;
const say = (file) => writeFileSync(file, "");

async function all(stream, each = () => {}) {
    const told = [];
    for await (const progress of stream) {
        told.push(progress);
        await each(progress);
    }
    return told;
}

const names = (told) => told.map(({ event }) => event.event).filter((name, at, all) => name !== "text_delta" || all[at - 1] !== name);

function isInOrder(told) {
    const ids = told.map(({ event }) => event.id.split("-").map(Number));
    for (const [at, [attempt, n]] of ids.slice(1).entries()) {
        assert.ok(attempt > ids[at][0] || (attempt === ids[at][0] && n > ids[at][1]), `${ids[at]} before ${attempt},${n}`);
    }
}

test("a structured answer grows, and is whole in the end", async () => {
    const relay = relayOf();
    const run = await relay.submit({ agent_type: "bank_support", query: "What is my balance?" });
    const told = await all(relay.follow(run.id));

    const last = told.at(-1);
    const { output } = await relay.call("GET", `/runs/${run.id}`);
    assert.equal(last.status, "succeeded");
    assert.deepEqual(last.output, output);
    assert.deepEqual(JSON.parse(last.text), output);
    const grown = told.filter(({ event }) => event.event === "text_delta");
    assert.ok(grown.length > 2);
    assert.ok(grown.every(({ event, text }) => event.token === text));
    assert.ok(grown.every((progress) => output.support_advice.startsWith(progress.output.support_advice ?? "")));
    assert.equal(told[0].status, "queued");
    assert.ok(told.slice(1, -1).every(({ status }) => status === "running"));
    isInOrder(told);
});

test("an API that is killed in mid-answer changes nothing", async () => {
    const relay = relayOf();
    const word = newFile();
    const run = await relay.submit({ agent_type: "patient", query: word });
    let seen = 0;
    const told = await all(relay.follow(run.id, { text: true }), async ({ event }) => {
        if (event.event === "text_delta" && seen++ === 0) {
            await stage("restart-api");
            say(word);
        }
    });

    assert.equal(told.at(-1).output, "Well, at last.");
    assert.deepEqual(names(told), ["message_created", "message_started", "text_delta", "message_complete", "done"]);
    assert.ok(told.filter(({ event }) => event.event === "text_delta").every(({ text }) => "Well, at last.".startsWith(text)));
    isInOrder(told);
});

test("a new attempt takes the answer back", async () => {
    const relay = relayOf();
    const word = newFile();
    const run = await relay.submit({ agent_type: "patient", query: word });
    const told = await all(relay.follow(run.id, { text: true }), async ({ event, attempt }) => {
        if (event.event !== "text_delta") return;
        if (attempt === 1) await stage("restart-worker");
        else say(word);
    });

    const begun = told.filter(({ event }) => event.event === "message_started");
    assert.deepEqual(begun.map(({ attempt, text, output }) => [attempt, text, output]), [[1, "", ""], [2, "", ""]]);
    assert.equal(told.at(-1).output, "Well, at last.");
    isInOrder(told);
});

test("it goes on after any event that was seen before", async () => {
    const relay = relayOf();
    const run = await relay.submit({ agent_type: "form", query: "please" });
    const whole = await all(relay.follow(run.id));
    const { output } = whole.at(-1);

    assert.notEqual(output, undefined);
    for (const [at, { event }] of whole.entries()) {
        const rest = await all(relay.follow(run.id, { after: event.id }));
        assert.deepEqual(names(rest).slice(-1), at === whole.length - 1 ? [] : ["done"]);
        if (rest.length) assert.deepEqual(rest.at(-1).output, output);
        isInOrder([{ event }, ...rest]);
    }
});

test("who leaves the loop, or aborts, leaves the run alone", async () => {
    const relay = relayOf();
    const word = newFile();
    const run = await relay.submit({ agent_type: "patient", query: word });
    for await (const { text } of relay.follow(run.id, { text: true })) if (text) break;
    const stop = new AbortController();
    const following = all(relay.follow(run.id, { text: true, signal: stop.signal }), () => stop.abort(new Error("enough")));
    await assert.rejects(following, /enough/);

    say(word);
    assert.equal((await all(relay.follow(run.id, { text: true }))).at(-1).output, "Well, at last.");
});

test("a run that fails says why, and one that is cancelled what it had", async () => {
    const relay = relayOf();
    const broken = await relay.submit({ agent_type: "breaks", query: "please" });
    const whole = await all(relay.follow(broken.id, { text: true }));
    const failed = whole.at(-1);
    assert.deepEqual([failed.status, failed.error.code], ["failed", "agent_error"]);
    const resumed = await all(relay.follow(broken.id, { text: true, after: whole.at(-2).event.id }));
    assert.deepEqual(resumed.map(({ event, error }) => [event.event, error]), [["done", failed.error]]);

    const patient = await relay.submit({ agent_type: "patient", query: newFile() });
    const told = await all(relay.follow(patient.id, { text: true }), async ({ event }) => {
        if (event.event === "text_delta") await relay.call("POST", `/runs/${patient.id}/cancel`);
    });
    assert.deepEqual([told.at(-1).status, told.at(-1).output], ["cancelled", "Well"]);
});

test("a run that waits says for what, and goes on once it is answered", async () => {
    const relay = relayOf();
    const run = await relay.submit({ agent_type: "asks", query: '[[["ask", {"question": "colour"}]]]' });
    const waits = (await all(relay.follow(run.id, { until: "waiting" }))).at(-1);
    assert.equal(waits.status, "waiting");
    const [{ request_id }] = waits.requests;
    const told = await all(relay.follow(run.id, { text: true }), async ({ event }) => {
        if (event.event !== "waiting") return;
        await relay.call("POST", `/runs/${run.id}/answers`, { body: { answers: [{ request_id, result: "red" }] } });
    });

    const answered = told.find(({ event }) => event.event === "answered");
    assert.deepEqual([answered.status, answered.requests], ["queued", []]);
    assert.equal(told.at(-1).status, "succeeded");
    assert.match(told.at(-1).output, /red/);
});

test("a query whose answer is lost is asked once", async () => {
    const userId = randomUUID();
    let sent = 0;
    const lossy = async (...call) => {
        const response = await fetch(...call);
        if (sent++ === 0) throw new TypeError("the answer is lost");
        return response;
    };
    const run = await relayOf({ userId, fetch: lossy }).submit({ agent_type: "echo", query: "hello" });

    const { items } = await relayOf({ userId }).call("GET", "/runs");
    assert.deepEqual(items.map(({ id }) => id), [run.id]);
    assert.equal(sent, 2);
});

test("a refusal says what is wrong", async () => {
    const relay = relayOf();
    await assert.rejects(relay.submit({ agent_type: "nobody", query: "hello" }), (error) => {
        assert.ok(error instanceof Refused);
        assert.deepEqual([error.status, error.code, error.name], [422, "invalid_request", "Refused"]);
        assert.equal(error.problem.errors[0].code, "unknown_agent");
        return true;
    });
    await assert.rejects(all(relay.follow(randomUUID())), { status: 404 });
    await assert.rejects(all(relayOf({ apiKey: "no-key" }).follow(randomUUID())), { status: 401 });
});

test("an answer that is not JSON says how to follow it", async () => {
    const relay = relayOf();
    const run = await relay.submit({ agent_type: "echo", query: "hello" });
    await assert.rejects(all(relay.follow(run.id)), /text: true/);
});

test("a token that has ended is replaced by the next one", async () => {
    const userId = randomUUID();
    const response = await fetch(`${baseUrl}/api/v1/user-tokens`, {
        method: "POST",
        headers: { "X-API-Key": apiKey, "Content-Type": "application/json" },
        body: JSON.stringify({ user_id: userId, ttl_s: 600 }),
    });
    const { token } = await response.json();
    const tokens = ["an-old-one", token];
    const relay = new AgentRelay({ baseUrl, token: async () => (tokens.length > 1 ? tokens.shift() : tokens[0]) });
    const run = await relay.submit({ agent_type: "echo", query: "hello" });

    assert.equal((await all(relay.follow(run.id, { text: true }))).at(-1).output, "You said: hello");
    await assert.rejects(new AgentRelay({ baseUrl, token: "an-old-one" }).submit({ agent_type: "echo", query: "hello" }), { status: 401 });
});
