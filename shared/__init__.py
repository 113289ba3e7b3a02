"""The common ground of API and worker: settings, tables, the life of a run, the queue, the event log, the sweeper."""

VERSION = "0.1.0"
