"""Worker processes: supervisor, and quarantine for runs under which a process died."""
