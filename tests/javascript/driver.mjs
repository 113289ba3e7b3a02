// Chats of the AI SDK for tests: reads a command a line, and writes each state of each chat as a line.

import { createInterface } from 'node:readline';
import { Chat } from '@ai-sdk/react';
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses,
  lastAssistantMessageIsCompleteWithToolCalls,
  readUIMessageStream,
} from 'ai';

const write = (name, what) => process.stdout.write(`${JSON.stringify({ chat: name, ...what })}\n`);

const chats = new Map();

function open({ name, id, url, headers, body, messages, answers, lastOnly }) {
  const place = { url };
  const transport = new DefaultChatTransport({
    api: `http://relay/api/v1/ai-sdk/chat`,
    headers,
    body,
    prepareSendMessagesRequest: lastOnly
      ? ({ id, messages, trigger, messageId, body }) => ({
          body: { ...body, id, trigger, messageId, messages: messages.slice(-1) },
        })
      : undefined,
    // The process that is asked may change while a chat is open.
    fetch: (input, init) => fetch(String(input).replace('http://relay', place.url), init),
  });
  const chat = new Chat({
    id,
    transport,
    messages,
    sendAutomaticallyWhen: answers
      ? options =>
          lastAssistantMessageIsCompleteWithApprovalResponses(options) ||
          lastAssistantMessageIsCompleteWithToolCalls(options)
      : undefined,
    onData: part => write(name, { data: part }),
    onFinish: ({ isAbort, isDisconnect, isError, finishReason }) =>
      write(name, { finished: { isAbort, isDisconnect, isError, finishReason } }),
  });
  const show = () =>
    write(name, { status: chat.status, error: chat.error?.message ?? null, messages: chat.messages });
  chat['~registerMessagesCallback'](show);
  chat['~registerStatusCallback'](show);
  chat['~registerErrorCallback'](show);
  chats.set(name, { chat, place });
  show();
}

// Reads a stream as a program without a page does: one message, as it grows.
async function read({ name, url, headers, body }) {
  const transport = new DefaultChatTransport({ api: `${url}/api/v1/ai-sdk/chat`, headers, body });
  const message = { id: 'm1', role: 'user', parts: [{ type: 'text', text: body.text }] };
  const { text, chat, ...rest } = body;
  transport.body = rest;
  const stream = await transport.sendMessages({ chatId: chat, messages: [message], trigger: 'submit-message' });
  for await (const state of readUIMessageStream({ stream, terminateOnError: true })) {
    write(name, { status: 'streaming', error: null, messages: [state] });
  }
  write(name, { finished: {} });
}

const commands = {
  open,
  read,
  move: ({ name, url }) => { chats.get(name).place.url = url; },
  send: ({ name, message, options }) => chats.get(name).chat.sendMessage(message, options),
  regenerate: ({ name, options }) => chats.get(name).chat.regenerate(options),
  resume: ({ name }) => chats.get(name).chat.resumeStream(),
  stop: ({ name }) => chats.get(name).chat.stop(),
  approve: ({ name, ...answer }) => chats.get(name).chat.addToolApprovalResponse(answer),
  output: ({ name, ...answer }) => chats.get(name).chat.addToolOutput(answer),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: verb, ...command } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[verb](command))
    .then(() => write(command.name, { did: verb }))
    .catch(error => write(command.name, { did: verb, failed: String(error.message ?? error) }));
}
