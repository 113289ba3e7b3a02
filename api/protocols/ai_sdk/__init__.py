"""The AI SDK's UI message stream (Vercel's `ai` package), so that its `useChat` works with this service as it is."""
