"""What the API and the worker must agree on: settings, tables, the life of a run, lanes, the event log, the sweeper."""

VERSION = "0.1.0"
