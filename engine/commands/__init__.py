"""The command line: what `gbad-batch` parses, calls and prints."""
