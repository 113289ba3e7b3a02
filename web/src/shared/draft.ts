/** A query that another page hands to the chat, in this tab. */
export interface Draft {
    agentType: string;
    query: string;
}

export const DRAFT = "agent-relay:draft";
