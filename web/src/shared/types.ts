// What the API shows, as far as the pages use it.

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Problem {
    code: string;
    title?: string;
    detail?: string;
    errors?: { pointer: string; code: string; message: string }[];
}

export interface Schema {
    $ref?: string;
    $defs?: Record<string, Schema>;
    type?: string | string[];
    title?: string;
    description?: string;
    enum?: Json[];
    const?: Json;
    format?: string;
    minimum?: number;
    maximum?: number;
    properties?: Record<string, Schema>;
    items?: Schema;
    anyOf?: Schema[];
    oneOf?: Schema[];
    allOf?: Schema[];
}

export interface Agent {
    agent_type: string;
    description: string;
    output_schema: Schema;
    served: boolean;
    examples: string[];
}

export interface Thread {
    id: string;
    agent_type: string;
    title: string | null;
    created_at: string;
    last_message_at: string | null;
    metadata: Record<string, Json>;
}

export interface Message {
    id: string;
    role: "user" | "assistant" | "system";
    content: string;
    created_at: string;
    metadata: Record<string, Json>;
}

export interface ThreadWithMessages extends Thread {
    messages: Message[];
}

export interface Usage {
    requests: number;
    input_tokens: number;
    output_tokens: number;
    cache_read_tokens?: number;
    cache_write_tokens?: number;
    tool_calls?: number;
    cost_usd?: number | null;
}

/** Something that a run has done: a response of the model, a call, a thought, or a message that it was given. */
export interface RunStep {
    index: number;
    kind: string;
    tool_call_id?: string | null;
    tool_name?: string | null;
    args?: Json;
    result?: Json;
    text?: string | null;
    attempt?: number | null;
    started_at?: string | null;
    finished_at?: string | null;
    usage?: Usage | null;
}

export interface RunError {
    code: string;
    message: string;
    retryable: boolean;
}

/** Something that a run waits for, or has waited for. */
export interface RunRequest {
    request_id: string;
    kind: string;
    tool_name: string;
    args: Json;
    prompt: string | null;
    schema: Schema | null;
    answer: { approve?: boolean; args?: Json; message?: string; result?: Json; error?: string } | null;
    answered_by: string | null;
    answered_at: string | null;
}

export interface Run {
    id: string;
    thread_id: string | null;
    agent_type: string;
    query: string;
    status: string;
    attempt: number;
    custom_id: string | null;
    output: Json;
    partial_output: Json;
    error: RunError | null;
    usage: Usage;
    requests: RunRequest[];
    queue_position: number | null;
    served: boolean | null;
    created_at: string;
    start_at: string | null;
    started_at: string | null;
    finished_at: string | null;
}

/** A message into a run, and what has become of it. */
export interface SentMessage {
    id: string;
    status: "pending" | "enqueued" | "queued" | "run_ended";
    run_id: string;
}

export interface Counts {
    total: number;
    queued: number;
    running: number;
    waiting: number;
    succeeded: number;
    failed: number;
    cancelled: number;
}

export interface Batch {
    id: string;
    agent_type: string;
    status: string;
    counts: Counts;
    served: boolean | null;
    metadata: Record<string, Json>;
    retry_of: string | null;
    created_at: string;
    finished_at: string | null;
}

export interface BatchLine {
    cursor?: number;
    custom_id?: string;
    run_id?: string;
    status: string;
    output?: Json;
    error?: RunError | null;
    counts?: Counts;
}

export interface Page<Item> {
    items: Item[];
    next_cursor: string | null;
}

export interface StreamEvent {
    id: string;
    event: string;
    message?: { id: string; role: string };
    attempt?: number;
    reason?: string;
    steps_kept?: number;
    reasoning_kept?: number;
    part?: number;
    tool_call_id?: string;
    tool_name?: string;
    args?: Json;
    content?: Json;
    token?: string;
    drop?: number;
    append?: string;
    usage?: Usage;
    error?: RunError;
    partial?: boolean;
    status?: string;
}
