// Agents of AG-UI's client. Its verifier and its schemas see each event before a subscriber does.

import { HttpAgent } from '@ag-ui/client';
import { serve } from './commands.mjs';

const agents = new Map();

// Where a connection breaks, the client fails its run, and throws the same error once more where nobody can catch it.
process.on('unhandledRejection', error => {
  if (error?.message !== 'terminated') throw error;
});

async function run({ name, runId, resume, context }, see) {
  const agent = agents.get(name);
  const { result } = await agent.runAgent({ runId, resume, context }, {
    onEvent: ({ event }) => see({ event }),
    onMessagesChanged: ({ messages }) => see({ messages }),
    onStateChanged: ({ state }) => see({ state }),
  });
  return { result, messages: agent.messages, state: agent.state, interrupts: agent.pendingInterrupts };
}

await serve({
  open: ({ name, ...config }) => { agents.set(name, new HttpAgent(config)); },
  move: ({ name, url }) => { agents.get(name).url = url; },
  add: ({ name, message }) => { agents.get(name).addMessage(message); },
  abort: ({ name }) => { agents.get(name).abortRun(); },
  run,
});
