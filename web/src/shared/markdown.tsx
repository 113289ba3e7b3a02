// Markdown as elements. No HTML is ever made of what a model says: tokens become elements, and everything that is not
// known stays text. Nothing is loaded from anywhere: an image becomes a link to itself.

import MarkdownIt, { type Token } from "markdown-it";
import type { ComponentChild, VNode } from "preact";
import { useRef, useState } from "preact/hooks";


/** Above this, text is shown as it is: to parse it at each growth would take longer than a frame. */
const MOST_CHARACTERS = 100_000;
/** List items and table rows that are shown at first. */
const FIRST_CHILDREN = 200;
const MORE_CHILDREN = 1_000;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

const parser = new MarkdownIt({ html: false, linkify: false, breaks: true });
parser.validateLink = () => true; // Links are judged where they become elements; what is refused stays visible.

const CONTAINERS: Record<string, string> = {
    paragraph: "p",
    blockquote: "blockquote",
    bullet_list: "ul",
    ordered_list: "ol",
    list_item: "li",
    table: "table",
    thead: "thead",
    tbody: "tbody",
    tr: "tr",
    th: "th",
    td: "td",
    em: "em",
    strong: "strong",
    s: "s",
};

interface Block {
    source: string;
    element: ComponentChild;
}

/** Markdown that may still grow: blocks that have not changed are not made again. */
export function Markdown({ text }: { text: string }) {
    const blocks = useRef<Block[]>([]);
    if (text.length > MOST_CHARACTERS) return <LongText text={text} />;
    blocks.current = blocksOf(text, blocks.current);
    return (
        <div class="markdown" dir="auto">
            {blocks.current.map((block) => block.element)}
        </div>
    );
}

/** Text that is too long for Markdown: its beginning, and the rest when it is asked for. */
export function LongText({ text }: { text: string }) {
    const [all, setAll] = useState(false);
    const shown = all ? text : text.slice(0, MOST_CHARACTERS / 5);
    return (
        <div class="long-text" dir="auto">
            <pre class="plain" tabindex={0}>{shown}</pre>
            {shown.length < text.length && (
                <button type="button" class="quiet" onClick={() => setAll(true)}>
                    Show all {text.length.toLocaleString()} characters
                </button>
            )}
        </div>
    );
}

function blocksOf(text: string, former: Block[]): Block[] {
    const lines = text.split("\n");
    const tokens = parser.parse(text, {});
    const blocks: Block[] = [];
    for (let start = 0; start < tokens.length; ) {
        const end = endOf(tokens, start);
        const [first, last] = tokens[start]?.map ?? [0, lines.length];
        const source = lines.slice(first, last).join("\n");
        const known = former[blocks.length];
        const element = known?.source === source ? known.element : elementsOf(tokens.slice(start, end))[0];
        blocks.push({ source, element });
        start = end;
    }
    return blocks;
}

/** Find where the element ends that begins at a token. */
function endOf(tokens: Token[], start: number): number {
    let depth = 0;
    for (let at = start; at < tokens.length; at++) {
        depth += tokens[at]?.nesting ?? 0;
        if (depth <= 0) return at + 1;
    }
    return tokens.length;
}

function elementsOf(tokens: Token[]): ComponentChild[] {
    const elements: ComponentChild[] = [];
    for (let start = 0; start < tokens.length; ) {
        const end = endOf(tokens, start);
        const token = tokens[start];
        if (token) elements.push(elementOf(token, tokens.slice(start + 1, Math.max(end - 1, start + 1))));
        start = end;
    }
    return elements;
}

function elementOf(token: Token, inner: Token[]): ComponentChild {
    const name = token.type.replace(/_open$/, "");
    switch (name) {
        case "inline":
            return elementsOf(token.children ?? []);
        case "text":
        case "html_inline":
        case "html_block":
            return token.content;
        case "softbreak":
        case "hardbreak":
            return <br />;
        case "code_inline":
            return <code>{token.content}</code>;
        case "code_block":
        case "fence":
            return (
                <pre tabindex={0}>
                    <code>{token.content}</code>
                </pre>
            );
        case "hr":
            return <hr />;
        case "heading":
            return <p class={`heading ${token.tag}`}>{elementsOf(inner)}</p>;
        case "link":
            return link(String(token.attrGet("href") ?? ""), elementsOf(inner));
        case "image":
            return image(String(token.attrGet("src") ?? ""), token.content);
        case "paragraph":
            return token.hidden ? elementsOf(inner) : <p>{elementsOf(inner)}</p>;
        case "table":
            return (
                <div class="scrolls" tabindex={0}>
                    <table>{elementsOf(inner)}</table>
                </div>
            );
        case "bullet_list":
        case "ordered_list":
        case "tbody":
            return <Children tag={CONTAINERS[name] ?? "div"} start={Number(token.attrGet("start") ?? 1)} tokens={inner} />;
        default: {
            const Tag = (CONTAINERS[name] ?? "span") as "span";
            return <Tag>{inner.length ? elementsOf(inner) : token.content}</Tag>;
        }
    }
}

/** A list or the body of a table; of a long one the beginning, and more when it is asked for. */
function Children({ tag, start, tokens }: { tag: string; start: number; tokens: Token[] }) {
    const [most, setMost] = useState(FIRST_CHILDREN);
    const shown: Token[] = [];
    let at = 0;
    let count = 0;
    for (; at < tokens.length && count < most; count++) {
        const end = endOf(tokens, at);
        shown.push(...tokens.slice(at, end));
        at = end;
    }
    const Tag = tag as "ol";
    const attributes = tag === "ol" && start !== 1 ? { start } : {};
    const more = at < tokens.length && (
        <button type="button" class="quiet" onClick={() => setMost(most + MORE_CHILDREN)}>
            Show more
        </button>
    );
    const Item = (tag === "tbody" ? "tr" : "li") as "li";
    return (
        <Tag {...attributes}>
            {elementsOf(shown)}
            {more && <Item class="more">{tag === "tbody" ? <td colSpan={99}>{more}</td> : more}</Item>}
        </Tag>
    );
}

function link(address: string, label: ComponentChild[]): VNode {
    if (!SAFE_LINK.test(address)) {
        return (
            <span class="refused-link" title="This link is not opened: it does not lead to a web page.">
                {label} ({address})
            </span>
        );
    }
    return (
        <a href={address} target="_blank" rel="noopener noreferrer nofollow">
            {label}
        </a>
    );
}

function image(address: string, alt: string): ComponentChild {
    return link(address, [`Image: ${alt || "without a description"}`]);
}
