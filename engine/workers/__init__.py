"""Worker processes: chunks of an archive go out to them, finished columns come back in order."""
