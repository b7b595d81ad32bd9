"""Systems that take turns on the same images: the command, a user's loop, other people's tools."""
