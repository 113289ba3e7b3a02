/** A client of agent-relay: submit a query, and follow its answer as it grows, over as many connections as that takes. */

export { AgentRelay } from "./client.js";
export type { FollowOptions, SubmitOptions } from "./client.js";
export { Refused, Unreachable } from "./connection.js";
export type { CallOptions, ConnectionOptions, Credentials } from "./connection.js";
export type { Growing, Progress, RunError, RunRequest, StreamEvent } from "./progress.js";
export type { components, operations, paths } from "./openapi.js";
