// OpenAI's client. Its helpers for streams put the answer together, and refuse what does not fit.

import OpenAI from 'openai';
import { serve } from './commands.mjs';

const clients = new Map();

// Reads the helper's own events, then what it has put together of them.
async function helped(stream, see, whole) {
  for await (const event of stream) see(event);
  return await whole(stream);
}

async function read(stream, see) {
  for await (const event of stream) see(event);
}

const of = ({ name }) => clients.get(name);

await serve({
  open: ({ name, ...options }) => { clients.set(name, new OpenAI({ maxRetries: 0, ...options })); },
  models: async given => (await of(given).models.list()).data,
  respond: given => of(given).responses.create(given.body),
  'respond in a stream': (given, see) =>
    helped(of(given).responses.stream(given.body), see, stream => stream.finalResponse()),
  'respond and read': async (given, see) => read(await of(given).responses.create({ ...given.body, stream: true }), see),
  retrieve: given => of(given).responses.retrieve(given.id),
  'read on': async (given, see) => read(await of(given).responses.retrieve(given.id, { ...given.query, stream: true }), see),
  'replay': (given, see) =>
    helped(of(given).responses.stream({ response_id: given.id, ...given.query }), see, stream => stream.finalResponse()),
  cancel: given => of(given).responses.cancel(given.id),
  delete: given => of(given).responses.delete(given.id),
  converse: given => of(given).conversations.create(given.body),
  items: async (given, see) => read(await of(given).conversations.items.list(given.id, given.query), see),
  complete: given => of(given).chat.completions.create(given.body),
  'complete in a stream': (given, see) =>
    helped(of(given).chat.completions.stream(given.body), see, stream => stream.finalChatCompletion()),
});
