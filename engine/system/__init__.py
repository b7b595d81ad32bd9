"""What the operating system gives: cores, processes, files that survive a crash."""
