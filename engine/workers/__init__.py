"""Worker processes: they take chunks of an archive and return finished columns."""
