"""How good the detection is, and how exact the numbers are."""
