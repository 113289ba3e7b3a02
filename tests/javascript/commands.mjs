// Carries out commands that stand on lines of the input, and writes what comes of each as lines: see tests/support/node.py.

import { createInterface } from 'node:readline';

// A client says in a warning what it does not understand: no test may have any.
console.warn = (...said) => write({ warning: said.map(String).join(' ') });

function write(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

export async function serve(commands) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { number, verb, given } = JSON.parse(line);
    Promise.resolve()
      .then(() => commands[verb](given, seen => write({ number, seen })))
      .then(result => write({ number, result: result ?? null }))
      .catch(error =>
        write({
          number,
          failed: { name: error?.constructor?.name, message: String(error?.message ?? error), code: error?.code, status: error?.status },
        }),
      );
  }
}
