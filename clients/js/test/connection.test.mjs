// The client against a server that breaks as networks and proxies do.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { AgentRelay, Unreachable } from "@agent-relay/client";

const ID = "01a20406-0000-7000-8000-000000000000";
const EVENTS = [
    { id: "0-1", event: "message_created", message: { id: ID, role: "user" }, run_id: ID },
    { id: "1-1", event: "message_started", message_id: ID, attempt: 1, reason: "first", steps_kept: 0 },
    { id: "1-2", event: "reasoning_delta", message_id: ID, part: 1, token: "Hm" },
    { id: "1-3", event: "reasoning_delta", message_id: ID, part: 1, drop: 0, append: "m …" },
    { id: "1-4", event: "text_delta", message_id: ID, token: '{"word":"Grü"}' },
    { id: "1-5", event: "text_delta", message_id: ID, drop: 2, append: 'ße 🙂"}' },
    { id: "2-0", event: "message_complete", message_id: ID, usage: {} },
    { id: "2-1", event: "done", status: "succeeded" },
];
const frame = (event) => `id: ${event.id}\nevent: ${event.event}\ndata: ${JSON.stringify(event)}\n\n`;

/** Serve each request with the next of these; each gets the response and the events after the cursor. */
async function serving(handlers, use) {
    const asked = [];
    const server = createServer((request, response) => {
        asked.push(request);
        const after = new URL(request.url, "http://server").searchParams.get("after");
        const rest = EVENTS.slice(EVENTS.findIndex(({ id }) => id === after) + 1);
        const begin = () => response.writeHead(200, { "Content-Type": "text/event-stream" }).write("retry: 1000\n\n");
        (handlers.length > 1 ? handlers.shift() : handlers[0])(response, rest, begin);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    try {
        await use(`http://127.0.0.1:${server.address().port}`, asked);
    } finally {
        server.closeAllConnections();
        server.close();
    }
}

async function follow(baseUrl, options = {}) {
    const told = [];
    const relay = new AgentRelay({ baseUrl, apiKey: "key", userId: "ann", ...options });
    for await (const progress of relay.follow(ID)) told.push(progress);
    return told;
}

const whole = (response, rest, begin) => {
    begin();
    response.end(rest.map(frame).join(""));
};

function isWhole(told) {
    assert.deepEqual(told.map(({ event }) => event.id), EVENTS.map(({ id }) => id));
    assert.deepEqual(told.at(-1).output, { word: "Grüße 🙂" });
    assert.equal(told[3].event.token, "Hmm …");
    assert.equal(told[5].event.token, '{"word":"Grüße 🙂"}');
}

test("what has grown is whole in each event", async () => {
    await serving([whole], async (baseUrl, asked) => {
        isWhole(await follow(baseUrl));
        assert.equal(asked.length, 1);
        assert.equal(asked[0].headers["x-api-key"], "key");
    });
});

test("a stream that is cut at any byte goes on after the last whole event", async () => {
    // Growth is of what a connection has told: after a cut, the service begins with a whole text.
    const text = (event) => (event.event === "text_delta" ? { ...event, drop: undefined, append: undefined, token: '{"word":"Grüße 🙂"}' } : event);
    const thought = (event) => (event.event === "reasoning_delta" ? { ...event, drop: undefined, append: undefined, token: "Hmm …" } : event);
    const bytes = Buffer.from(EVENTS.map(frame).join(""));
    const cuts = Array.from({ length: 60 }, (_, at) => Math.floor((at * bytes.length) / 60));
    await Promise.all(
        cuts.map((cut, at) =>
            serving(
                [
                    (response, _, begin) => {
                        begin();
                        response.write(bytes.subarray(0, cut), () => (at % 2 ? response.destroy() : response.end()));
                    },
                    (response, rest, begin) => {
                        begin();
                        response.end(rest.map(text).map(thought).map(frame).join(""));
                    },
                ],
                async (baseUrl) => {
                    const told = await follow(baseUrl);
                    assert.deepEqual(told.map(({ event }) => event.id), EVENTS.map(({ id }) => id));
                    assert.deepEqual(told.at(-1).output, { word: "Grüße 🙂" });
                },
            ),
        ),
    );
});

test("a connection that says nothing any more is given up", async () => {
    const silent = (response, rest, begin) => {
        begin();
        response.write(rest.slice(0, 2).map(frame).join(""));
    };
    await serving([silent, whole], async (baseUrl, asked) => {
        isWhole(await follow(baseUrl, { silenceMs: 200 }));
        assert.ok(asked.length > 1);
    });
});

test("a keep-alive says that a stream is alive", async (t) => {
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const bytes = new TextEncoder();
    let signal, body, asked = 0;
    const fake = async (_url, init) => {
        asked++;
        signal = init.signal;
        body = new TransformStream();
        return new Response(body.readable, { headers: { "Content-Type": "text/event-stream" } });
    };
    const following = follow("http://nowhere", { fetch: fake });
    while (body === undefined) await setImmediate();
    const writer = body.writable.getWriter();
    for (let times = 0; times < 5; times++) {
        await writer.write(bytes.encode(":\n\n"));
        await setImmediate();
        t.mock.timers.tick(44_000);
        assert.equal(signal.aborted, false);
    }
    await writer.write(bytes.encode(EVENTS.map(frame).join("")));
    isWhole(await following);
    assert.equal(asked, 1);
});

test("a service that is full or restarting is asked again", async () => {
    const away = (status, headers) => (response) => response.writeHead(status, headers).end("{}");
    await serving([away(503, { "Retry-After": "0" }), away(502), away(429), whole], async (baseUrl) => isWhole(await follow(baseUrl)));
});

test("what does not answer, or is something else, is said to be so", async () => {
    await serving([(response) => response.end("<html>")], async (baseUrl) => {
        await assert.rejects(follow(baseUrl), Unreachable);
    });
    await serving([(response) => response.destroy()], async (baseUrl) => {
        await assert.rejects(follow(baseUrl, { patienceMs: 0 }), Unreachable);
    });
});

test("a POST without a key is sent once", async () => {
    await serving([(response) => response.writeHead(503).end()], async (baseUrl, asked) => {
        const relay = new AgentRelay({ baseUrl, apiKey: "key", userId: "ann" });
        await assert.rejects(relay.call("POST", "/runs", { body: {} }), Unreachable);
        assert.equal(asked.length, 1);
    });
});
