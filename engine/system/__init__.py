"""Services of the operating system: cores, processes, files that survive a crash."""
