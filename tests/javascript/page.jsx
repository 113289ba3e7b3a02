// A page with a chat, as docs/ai-sdk.md shows it. `window.config` says whose; `window.states` is what it has shown.

import { useEffect } from 'react';
import { createRoot } from 'react-dom/client';
import { useChat } from '@ai-sdk/react';
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from 'ai';

const { id, headers, body } = window.config;
const api = '/api/v1/ai-sdk/chat';
window.states = [];

function Part({ part, approve }) {
  if (part.type === 'text') return <p>{part.text}</p>;
  if (part.type === 'data-output') return <pre>{JSON.stringify(part.data)}</pre>;
  if (!part.type.startsWith('tool-')) return null;
  return (
    <div className="tool" data-state={part.state}>
      {part.type} {JSON.stringify(part.output)}
      {part.state === 'approval-requested' && (
        <>
          <button onClick={() => approve({ id: part.approval.id, approved: true })}>Approve</button>
          <button onClick={() => approve({ id: part.approval.id, approved: false, reason: 'No.' })}>Deny</button>
        </>
      )}
    </div>
  );
}

function Chat({ messages }) {
  const chat = useChat({
    id,
    messages,
    resume: true,
    transport: new DefaultChatTransport({
      api,
      headers,
      body,
      prepareSendMessagesRequest: ({ id, messages, trigger, messageId, body }) => ({
        body: { ...body, id, trigger, messageId, messages: messages.slice(-1) },
      }),
    }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
    onError: error => {
      // A connection has broken off, or could not be made.
      if (error instanceof TypeError) setTimeout(() => chat.resumeStream(), 1000);
    },
  });
  useEffect(() => {
    window.states.push(structuredClone(chat.messages));
  }, [chat.messages]);
  const submit = event => {
    event.preventDefault();
    chat.sendMessage({ text: new FormData(event.currentTarget).get('text') });
  };
  return (
    <main data-status={chat.status}>
      {chat.messages.map(message => (
        <article key={message.id} data-role={message.role}>
          {message.parts.map((part, place) => (
            <Part key={place} part={part} approve={chat.addToolApprovalResponse} />
          ))}
        </article>
      ))}
      <form onSubmit={submit}>
        <input name="text" aria-label="Message" />
      </form>
      <button onClick={() => chat.stop()}>Stop</button>
      <button onClick={() => chat.regenerate()}>Regenerate</button>
      <button onClick={() => chat.resumeStream()}>Resume</button>
    </main>
  );
}

const first = await fetch(`${api}/${id}/messages`, { headers });
createRoot(document.getElementById('root')).render(<Chat messages={await first.json()} />);
