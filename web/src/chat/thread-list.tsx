import { useEffect, useRef, useState } from "preact/hooks";

import type { Thread } from "../shared/types.ts";
import type { Store } from "./store.ts";
import { titleOf } from "./store.ts";

/** The threads of this user: search, open, rename, delete. Up and down move, F2 renames, Delete deletes. */
export function ThreadList({ store, onOpened }: { store: Store; onOpened: () => void }) {
    const [renaming, setRenaming] = useState<Thread | null>(null);
    const [leaving, setLeaving] = useState<Thread | null>(null);
    const list = useRef<HTMLUListElement>(null);
    const open = (event: MouseEvent, id: string | null) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        void store.open(id);
        onOpened();
        document.getElementById("query")?.focus();
    };
    const move = (event: KeyboardEvent, thread: Thread) => {
        const links = [...(list.current?.querySelectorAll<HTMLElement>("a") ?? [])];
        const at = links.indexOf(event.currentTarget as HTMLElement);
        const steps: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 };
        const next = steps[event.key];
        if (next !== undefined) {
            links[Math.max(0, Math.min(next, links.length - 1))]?.focus();
            event.preventDefault();
        } else if (event.key === "Delete") {
            setLeaving(thread);
            event.preventDefault();
        } else if (event.key === "F2") {
            setRenaming(thread);
            event.preventDefault();
        }
    };
    return (
        <aside id="threads" aria-label="Threads">
            <a class="button primary" href="./" onClick={(event) => open(event, null)}>
                New thread
            </a>
            <input
                type="search"
                aria-label="Search threads"
                placeholder="Search threads"
                maxLength={200}
                onInput={(event) => store.search(event.currentTarget.value)}
            />
            {store.searched && !store.threads.length && <p class="none">{store.words ? "No thread has this text." : "No threads yet."}</p>}
            <ul ref={list} class="threads" aria-busy={!store.searched}>
                {store.threads.map((thread) => (
                    <li key={thread.id} class={thread.id === store.threadId ? "open" : ""}>
                        <a
                            href={`?thread=${thread.id}`}
                            aria-current={thread.id === store.threadId ? "page" : undefined}
                            onClick={(event) => open(event, thread.id)}
                            onKeyDown={(event) => move(event, thread)}
                        >
                            <span class="title" dir="auto">
                                {titleOf(thread)}
                            </span>
                            <span class="detail">
                                {thread.agent_type} · {when(thread.last_message_at ?? thread.created_at)}
                            </span>
                        </a>
                        <button type="button" class="quiet rename" aria-label={`Rename ${titleOf(thread)}`} onClick={() => setRenaming(thread)}>
                            ✎
                        </button>
                        <button type="button" class="quiet delete" aria-label={`Delete ${titleOf(thread)}`} onClick={() => setLeaving(thread)}>
                            ×
                        </button>
                    </li>
                ))}
            </ul>
            {store.moreThreads && store.searched && (
                <button type="button" class="quiet" onClick={() => void store.loadMoreThreads()}>
                    Older threads
                </button>
            )}
            {renaming && (
                <RenameDialog
                    thread={renaming}
                    onClose={(title) => {
                        setRenaming(null);
                        if (title !== null) void store.rename(renaming, title);
                    }}
                />
            )}
            {leaving && (
                <DeleteDialog
                    thread={leaving}
                    onClose={(sure) => {
                        setLeaving(null);
                        if (sure) void store.deleteThread(leaving);
                    }}
                />
            )}
        </aside>
    );
}

/** A field for another title; closed with null where it stays as it is. */
function RenameDialog({ thread, onClose }: { thread: Thread; onClose: (title: string | null) => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    const [title, setTitle] = useState(thread.title ?? "");
    useEffect(() => dialog.current?.showModal(), []);
    return (
        <dialog ref={dialog} aria-labelledby="rename-title" onClose={() => onClose(dialog.current?.returnValue === "rename" ? title : null)}>
            <form method="dialog">
                <h2 id="rename-title">Rename this thread</h2>
                <label>
                    Title
                    <input value={title} dir="auto" maxLength={200} autofocus onInput={(event) => setTitle(event.currentTarget.value)} />
                </label>
                <div class="choices">
                    <button type="button" onClick={() => dialog.current?.close()}>
                        Cancel
                    </button>
                    <button value="rename" class="primary">
                        Rename
                    </button>
                </div>
            </form>
        </dialog>
    );
}

function DeleteDialog({ thread, onClose }: { thread: Thread; onClose: (sure: boolean) => void }) {
    const dialog = useRef<HTMLDialogElement>(null);
    useEffect(() => dialog.current?.showModal(), []);
    return (
        <dialog ref={dialog} aria-labelledby="delete-title" onClose={() => onClose(dialog.current?.returnValue === "delete")}>
            <form method="dialog">
                <h2 id="delete-title">Delete this thread?</h2>
                <p dir="auto">“{titleOf(thread)}” and all its messages are deleted. A run of it that is not finished is cancelled.</p>
                <div class="choices">
                    <button value="keep">Keep it</button>
                    <button value="delete" class="danger">
                        Delete
                    </button>
                </div>
            </form>
        </dialog>
    );
}

function when(time: string): string {
    const date = new Date(time);
    const today = new Date().toDateString() === date.toDateString();
    return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : date.toLocaleDateString();
}
